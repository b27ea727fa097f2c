# %% [markdown]
# # Models that do not fit this machine
#
# Pictures of concepts in a model whose weights stay on a server (NDIF's, or one of your own): each ascent is one job
# there. Nothing but where the model is loaded differs from the other recipes.
#
#     python recipes/remote.py                                             the bundled model, by a server's path, here
#     python recipes/remote.py --model google/gemma-3-27b-it --remote      NDIF's server ($NDIF_HOST, $NDIF_API_KEY)
#     python recipes/remote.py --model ... --remote http://127.0.0.1:8001  a server of your own
#     python recipes/remote.py ... --steps-per-job 100                     where jobs may not take long
#     python recipes/remote.py ... --submit                                leave the work there, print a job's id
#     python recipes/remote.py ... --collect ID                            fetch it, later, from anywhere
#     python recipes/remote.py ... --sweep --remote-concurrency 4          every word at every layer, four jobs in flight

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import nnsight_dream as nd
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.synthesis.settings import changed

QUICK = ["--quick"]


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of concepts in a model on a server.")
    parser.add_argument("--model", default="demo", help="a hub id; 'demo' with --remote local")
    parser.add_argument("--remote", nargs="?", const=True, default="local", metavar="URL", help="where the model is")
    parser.add_argument("--steps-per-job", type=int, metavar="N", help="cut ascents into jobs of N steps")
    parser.add_argument("--device", help="with --remote local: cuda, mps or cpu (default: the best; demo: cpu)")
    parser.add_argument("--words", nargs="+", default=["octopus", "fox"])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4], help="from 1")
    parser.add_argument("--steps", type=int, help="of each ascent (default: the preset's)")
    parser.add_argument("--folder", type=option_path, default=Path("remote-dreams"), help="where results go")
    parser.add_argument("--submit", action="store_true", help="leave the work to the server")
    parser.add_argument("--collect", metavar="ID", help="fetch what was left")
    parser.add_argument("--sweep", action="store_true", help="into a store, stopped and resumed at any moment")
    parser.add_argument(
        "--remote-concurrency", type=int, default=2, metavar="N", help="jobs of a sweep in flight at once"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps")
    args = parser.parse_args()
    check_folder(args.folder, "--folder")  # before any work

    vlm = nd.load(args.model, remote=args.remote, device=args.device, steps_per_job=args.steps_per_job)
    print(vlm)
    steps = 3 if args.quick else args.steps
    changes = {} if steps is None else {"steps": steps}
    if args.collect:
        keep(nd.collect(vlm, args.collect), args.folder)
    elif args.sweep:
        jobs = nd.jobs_of([(word, "", word) for word in args.words], args.layers)
        settings = changed(vlm, **changes)
        print(nd.sweep(vlm, jobs, args.folder, settings=settings, remote_concurrency=args.remote_concurrency))
    else:
        # nothing is sent yet: the vectors are made in the job that climbs them
        by_word = nd.concept(vlm, args.words, layer=args.layers)
        directions = [direction for of_word in by_word for direction in of_word]
        if args.submit:
            job = nd.submit(vlm, directions, **changes)
            print(f"left there as {job.id}; fetch it with --collect {job.id}")
        else:
            keep(nd.synthesize(vlm, directions, **changes), args.folder)


def keep(result: nd.Prototype | nd.Prototypes, folder: Path) -> None:
    result.save(folder)
    for prototype in result if isinstance(result, nd.Prototypes) else [result]:
        print(prototype)


if __name__ == "__main__":
    main()
