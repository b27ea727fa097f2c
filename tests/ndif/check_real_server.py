"""Against NDIF's own server code (its model actor shimmed to a CPU, on loopback): what `make test-ndif` runs.

It is run inside the server's network namespace, by `run.sh`, which says where the server is and what it serves.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import nnsight_dream as nd
from nnsight_dream.remote import client
from nnsight_dream.remote.client import _request, _send

HOST = os.environ.get("NDIF_HOST", "http://127.0.0.1:8001")
NAME = os.environ.get("NDIF_REPO", "dream/demo")
FEW = nd.Settings.demo().but(steps=6)
WORDS = ["octopus", "fox"]


@pytest.fixture(scope="module")
def there() -> nd.VLM:
    return nd.load(NAME, remote=HOST)


@pytest.fixture(scope="module")
def here() -> nd.VLM:
    return nd.load("demo")


@pytest.fixture(scope="module")
def expected(here: nd.VLM) -> nd.Prototypes:
    return nd.synthesize(here, nd.concept(here, WORDS, layer=4), settings=FEW)


def same(found: Any, wanted: Any, within: float = 1e-5) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.history == pytest.approx(theirs.history, abs=within)
        assert mine.scores == pytest.approx(theirs.scores, abs=within)
        assert abs(mine.heat - theirs.heat).max() < within
        assert (mine.label, mine.site, mine.seed) == (theirs.label, theirs.site, theirs.seed)


def test_no_weights_are_here(there: nd.VLM) -> None:
    assert {p.device.type for p in there.hf.parameters()} == {"meta"}
    assert "on http://" in repr(there)


def test_concept_vectors(there: nd.VLM, here: nd.VLM) -> None:
    mine, theirs = (nd.concept(vlm, WORDS, layer=[1, 4]) for vlm in (there, here))
    for a, b in zip(mine, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x.vector - y.vector).abs().max() <= 1e-5 * y.vector.abs().max()
            assert x.provenance["tokens"] == y.provenance["tokens"]


def test_an_ascent_is_one_job_and_tells_its_steps(
    there: nd.VLM, expected: nd.Prototypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    real = _send
    monkeypatch.setattr(client, "_send", lambda made, blob, *rest: sent.append(len(blob)) or real(made, blob, *rest))
    steps: list[int] = []
    states: list[str] = []

    def watch(step: int, scores: torch.Tensor) -> None:
        steps.append(step)
        assert scores.shape == (2,)

    watch.status = lambda state, line: states.append(state)  # type: ignore[attr-defined]
    found = nd.synthesize(there, nd.concept(there, WORDS, layer=4), settings=FEW, progress=watch)
    same(found, expected)
    assert len(sent) == 1
    assert steps == list(range(6))
    assert any(state.startswith("running") for state in states)


def test_a_batch_of_directions_and_seeds(there: nd.VLM, here: nd.VLM) -> None:
    made = [
        nd.synthesize(
            vlm, nd.concept(vlm, ["bee", "frog"], layer=2), settings=FEW.but(canvas=nd.Fourier(32)), seed=[0, 7]
        )
        for vlm in (there, here)
    ]
    same(*made)


@pytest.mark.parametrize("centre", [nd.Grey(), nd.NaturalNoise(count=8), nd.Pictures.bundled()], ids=type)
def test_centres(there: nd.VLM, here: nd.VLM, centre: Any) -> None:
    wanted = nd.from_tensor(here, torch.linspace(-1, 1, here.width), 3)
    away = nd.Away(nd.from_tensor(here, torch.ones(here.width), 2), 0.3)
    mine = nd.from_tensor(there, wanted.vector, 3)
    other = nd.Away(nd.from_tensor(there, away.direction.vector, 2), 0.3)
    few = FEW.but(centre=centre, steps=3)
    found = nd.synthesize(there, [mine], settings=few, terms=[nd.TotalVariation(0.1), other])
    same(found, nd.synthesize(here, [wanted], settings=few, terms=[nd.TotalVariation(0.1), away]))


def test_a_feature(there: nd.VLM, here: nd.VLM) -> None:
    one, two = nd.feature("demo", [3, 7])
    found = nd.synthesize(there, [one, one - 0.5 * two], settings=FEW)
    wanted = nd.synthesize(here, [one, one - 0.5 * two], settings=FEW)
    same(found, wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        for name in ("pre_max", "act_max", "cosine", "norm"):
            assert mine.readings[name] == pytest.approx(theirs.readings[name], abs=1e-5)


def test_pictures_are_read_there(there: nd.VLM, here: nd.VLM) -> None:
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sites = [here.site(2), here.site(5)]
    mine, theirs = (nd.read_pictures(vlm, pictures, sites) for vlm in (there, here))
    for site in sites:
        assert (mine[site] - theirs[site]).abs().max() < 1e-5


def test_a_cut_ascent_is_bit_for_bit_the_uncut_one(there: nd.VLM) -> None:
    cut = nd.load(NAME, remote=HOST, steps_per_job=4)
    for optimiser in ("sgd", "adam"):
        few = FEW.but(optimiser=optimiser, rate=0.05, canvas=nd.Fourier(32))
        whole, pieces = (nd.synthesize(vlm, nd.concept(vlm, WORDS, layer=4), settings=few) for vlm in (there, cut))
        for a, b in zip(whole, pieces, strict=True):
            assert (a.history, a.scores, a.image.tobytes()) == (b.history, b.scores, b.image.tobytes())


COLLECT = """
import sys, json, nnsight_dream as nd
made = nd.collect(nd.load(sys.argv[1], remote=sys.argv[2]), sys.argv[3])
print(json.dumps([[p.label, p.history, dict(p.scores), p.direction["norm"]] for p in made]))
"""


def test_a_detached_job_is_collected_by_another_process(there: nd.VLM, expected: nd.Prototypes) -> None:
    job = nd.submit(there, nd.concept(there, WORDS, layer=4), settings=FEW)
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, NAME, HOST, job.id], capture_output=True, text=True, timeout=120, check=True
    )
    for (label, history, scores, norm), wanted in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        assert (label, history) == (wanted.label, pytest.approx(wanted.history, abs=1e-5))
        assert scores == pytest.approx(wanted.scores, abs=1e-5)
        assert norm == pytest.approx(wanted.direction["norm"], abs=1e-4)
    assert job.state() == "completed"


def test_a_sandbox_is_an_error_that_says_so(there: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _request

    def untrusted(made: Any, session: str) -> Any:
        request = real(made, session)
        told = json.dumps({**json.loads(request.metadata()), "trusted": False})
        object.__setattr__(request, "metadata", lambda: told)
        return request

    monkeypatch.setattr(client, "_request", untrusted)
    with pytest.raises(RuntimeError, match=r"no gradient reaches the picture.*sandbox.*'trusted' tag.*own"):
        nd.synthesize(there, nd.concept(there, WORDS, layer=4), settings=FEW)
    assert nd.concept(there, "bee", layer=3).norm > 0  # no gradient is needed


def test_a_sweep_keeps_jobs_in_flight_and_a_second_client_collects(there: nd.VLM, here: nd.VLM, tmp_path: Path) -> None:
    cut = nd.load(NAME, remote=HOST, steps_per_job=2)
    jobs = nd.jobs_of([(w, "animal", w) for w in ("fox", "octopus", "bee")], [2, 4])
    few = FEW.but(at_once=4, steps=4)
    swept = nd.sweep(cut, jobs, tmp_path / "cut", settings=few, remote_concurrency=3, progress=False)
    assert (swept.made, swept.failed) == (6, {})
    assert not list((tmp_path / "cut" / "remote").glob("*"))
    home = nd.sweep(here, jobs, tmp_path / "here", settings=few, progress=False)
    key = lambda e: (e.job.concept, e.job.layer)  # noqa: E731
    same(
        [e.prototype() for e in sorted(swept.store.entries(), key=key)],
        [e.prototype() for e in sorted(home.store.entries(), key=key)],
    )


SWEEP = """
import sys, nnsight_dream as nd
vlm = nd.load(sys.argv[1], remote=sys.argv[2])
jobs = nd.jobs_of([("fox", "animal", "fox"), ("bee", "animal", "bee")], [4])
nd.sweep(vlm, jobs, sys.argv[3], settings=nd.Settings.demo().but(steps=150), progress=False)
"""


def test_a_killed_client_collects_what_it_sent(there: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = subprocess.Popen([sys.executable, "-c", SWEEP, NAME, HOST, str(tmp_path)])
    until(lambda: list((tmp_path / "remote").glob("*.json")))
    client.send_signal(signal.SIGKILL)
    client.wait()
    (record,) = (tmp_path / "remote").glob("*.json")
    sent: list[Any] = []
    monkeypatch.setattr("nnsight_dream.sweeps.servers.send_detached", lambda *a: sent.append(a))
    jobs = nd.jobs_of([("fox", "animal", "fox"), ("bee", "animal", "bee")], [4])
    swept = nd.sweep(there, jobs, tmp_path, settings=nd.Settings.demo().but(steps=150), progress=False)
    assert (swept.made, swept.failed, sent) == (2, {}, [])
    assert not record.exists()
    assert all(len(e.prototype().history) == 150 for e in swept.store.entries())


def test_a_killed_model_actor_costs_no_more_than_time(there: nd.VLM, here: nd.VLM) -> None:
    few = FEW.but(steps=300)
    began = threading.Event()
    steps: list[int] = []
    killed: list[tuple[int, int]] = []

    def watch(step: int, scores: torch.Tensor) -> None:
        steps.append(step)
        began.set()

    def kill() -> None:
        began.wait(120)
        process = actor()
        os.kill(process, signal.SIGKILL)
        killed.append((process, steps[-1]))

    thread = threading.Thread(target=kill)
    thread.start()
    found = nd.synthesize(there, nd.concept(there, WORDS, layer=4), settings=few, progress=watch)
    thread.join()
    assert killed
    assert killed[0][1] < 299, "the job was done before its actor could be killed"
    assert steps.count(0) == 2, (killed, steps)  # it began anew
    assert all(len(p.history) == 300 for p in found)
    same(found, nd.synthesize(here, nd.concept(here, WORDS, layer=4), settings=few), 2e-3)  # 300 steps of rounding


def actor() -> int:
    """The process of the model's actor, among those that the server's namespace holds."""
    home = int(os.environ["NDIF_CHILD"])
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Sandboxed") and home in ancestors(int(folder.name)):
            return int(folder.name)
    raise LookupError("the model has no actor")


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(process)
    return found


def until(ready: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_which_models_are_there(there: nd.VLM) -> None:
    until(lambda: any(one.id == NAME and one.state == "running" for one in nd.remote_models(HOST)), 120)
    (one,) = [one for one in nd.remote_models(HOST) if one.id == NAME]
    assert (one.family, one.ready) == ("gemma3", True)


def test_a_model_that_nobody_has() -> None:
    with pytest.raises(OSError, match="dream/none"):
        nd.load("dream/none", remote=HOST)
