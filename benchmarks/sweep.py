"""How much faster is a sweep over two Ray workers than one process? One thread each, the same jobs, the same bits.

    python benchmarks/sweep.py [--workers 2] [--concepts 64] [--layers 1] [--rounds 2]

Whole sweeps are timed, the start of the workers (a process and a model each) included and told apart; the ratio of
the rates leaves it out, since a real sweep takes hours.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from pathlib import Path

import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.sweeps.ray import Cluster
from nnsight_dream.synthesis.centres import centre


class Timed(Cluster):
    """A cluster that notes when its first chunk was done."""

    def _work(self, left, done, tell, *rest):
        def watch(event, chunk, step):
            if event == "done":
                finished.append((time.perf_counter(), len(chunk.jobs)))
            tell(event, chunk, step)

        super()._work(left, done, watch, *rest)


finished: list[tuple[float, int]] = []


def pictures(folder: Path) -> str:
    """A hash of all pictures of a store."""
    files = sorted(folder.rglob("prototype.png"), key=lambda f: f.parent.name)
    return hashlib.sha256(b"".join(f.parent.name.encode() + f.read_bytes() for f in files)).hexdigest()


def main() -> None:
    """Print one row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concepts", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vlm = nd.load("demo")
    named = [(c.name, c.category, "") for c in bundle.concepts()[: args.concepts]]
    jobs = nd.jobs_of(named, args.layers)
    settings = nd.Settings.demo().but(at_once=4 * nd.Settings.demo().batch)  # small batches spread evenly
    for layer in args.layers:  # a process reads the centre of a layer once: the workers do in their first chunks
        centre(vlm, vlm.site(layer), settings.centre)
    seconds: dict[str, list[float]] = {"one process": [], f"{args.workers} workers": []}
    starts, seen = [], set()
    for _ in range(args.rounds):
        for way in seconds:
            with tempfile.TemporaryDirectory() as folder:
                finished.clear()
                cluster = None if way == "one process" else Timed("demo", args.workers)
                began = time.perf_counter()
                done = nd.sweep(vlm, jobs, folder, settings=settings, progress=False, ray=cluster)
                ended = time.perf_counter()
                assert done.made == len(jobs), done
                seen.add(pictures(Path(folder)))
                if cluster is None:
                    seconds[way].append((ended - began) / len(jobs))
                    continue
                # from the moment when every worker had done its first chunk: all of them run
                first, early = finished[args.workers - 1][0], sum(n for _, n in finished[: args.workers])
                last = finished[-1][0]
                seconds[way].append((last - first) / (len(jobs) - early))
                starts.append(ended - began - seconds[way][-1] * len(jobs))
    assert len(seen) == 1, "the ways gave different pictures"
    single, many = (statistics.median(s) for s in seconds.values())
    print(f"{len(jobs)} pictures, {settings.steps} steps, one thread a process, medians of {args.rounds} rounds")
    print("| | seconds a picture | ratio |\n|---|---|---|")
    print(f"| one process | {single:.2f} | 1 |\n| {args.workers} Ray workers | {many:.2f} | {single / many:.2f} |")
    for way, values in seconds.items():
        print(f"{way}, round by round: {', '.join(f'{s:.2f}' for s in values)}")
    print(f"starting the workers took {statistics.median(starts):.0f} s; the pictures are equal to the last bit")


if __name__ == "__main__":
    main()
