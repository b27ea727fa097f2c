"""Sweeps and stores: what is kept is whole, what is interrupted goes on with the same bits, faults stay with the faulty."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import nnsight_dream as nd
from nnsight_dream import paper
from nnsight_dream.sweeps import display as sweep_display
from nnsight_dream.sweeps import ray as ray_workers
from nnsight_dream.sweeps import store
from nnsight_dream.sweeps import sweep as sweeping
from nnsight_dream.sweeps.jobs import Job
from nnsight_dream.sweeps.store import Store

FEW = nd.Settings(
    steps=3, batch=2, rate=0.5, at_once=4, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),), pooling=nd.Attention(tau=0.1)
)
WORDS = [("dog", "animal", ""), ("cat", "animal", ""), ("spring (season)", "season", "spring"), ("../../x", "", "fox")]


def jobs(**given: Any) -> list[Job]:
    return nd.jobs_of(WORDS, [1, 3], **given)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the finished jobs but for versions, which never differ in one session."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "jobs").rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tiny_vlm: nd.VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that ran through."""
    folder = tmp_path_factory.mktemp("whole")
    done = nd.sweep(tiny_vlm, jobs(seeds=[0, 1], controls=1), folder, settings=FEW, progress=False)
    assert done.ok
    assert done.made == 20
    return folder


# -- jobs --------------------------------------------------------------------------------------------------------


def test_jobs_are_the_product_and_controls_are_spread() -> None:
    found = nd.jobs_of([(f"c{i}", "", "") for i in range(9)], [1, 2], seeds=[0, 5], controls=3)
    assert len(found) == 2 * 2 * (9 + 3)
    assert {j.concept for j in found if j.control} == {"c0", "c3", "c6"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(concept=" "), "a word or phrase is needed"),
        (dict(concept="a", control="noise"), "allowed are '' and 'random'"),
        (dict(concept="a", pooling="median"), "'attention', 'mean' and 'max'"),
        (dict(concept="a", seed=-1), "a whole number from 0"),
        (dict(concept="a", layer=1.5), "a layer from 1"),
    ],
)
def test_wrong_jobs(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Job(**given)


@pytest.mark.parametrize("given", [dict(layers=[]), dict(layers=[1], seeds=[]), dict(layers=[1], controls=5)])
def test_wrong_products(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"nothing to do|controls=5"):
        nd.jobs_of(WORDS, **given)


def test_keys_differ_by_all_that_decides() -> None:
    base = Job("dog")
    others = [
        Job("Dog"),
        Job("dog", layer=2),
        Job("dog", seed=1),
        Job("dog", prompt="hound"),
        Job("dog", control="random"),
    ]
    keys = {j.key(model="m") for j in [base, *others]} | {base.key(model="n")}
    assert len(keys) == 7
    assert base.key(model="m") == Job("dog").key(model="m")


@pytest.mark.parametrize("name", ["../../x", "<script>alert(1)</script>", "a/b\\c:d", "日本", "..", "con", "x" * 300])
def test_any_name_is_a_safe_folder(name: str) -> None:
    key = Job(name).key()
    assert len(key) < 90
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def test_digest_sees_into_tensors_pictures_and_functions() -> None:
    from nnsight_dream.synthesis.digests import digest

    base = FEW.but(centre=torch.zeros(32))
    ones = FEW.but(centre=torch.zeros(32).index_fill(0, torch.tensor([3]), 1.0))
    assert base.record() == ones.record()
    assert digest(base) != digest(ones)
    assert digest(base) == digest(FEW.but(centre=torch.zeros(32)))
    assert digest(FEW.but(score=lambda a, b: (a * b).sum(-1))) != digest(FEW.but(score=lambda a, b: (a + b).sum(-1)))


# -- what a sweep makes ------------------------------------------------------------------------------------------


def test_a_swept_picture_is_the_synthesised_one(tiny_vlm: nd.VLM, whole: Path) -> None:
    entry = next(e for e in Store(whole).entries() if e.job.words == "spring" and e.job.layer == 3 and e.job.seed == 1)
    direct = nd.synthesize(tiny_vlm, nd.concept(tiny_vlm, "spring", 3), settings=FEW, seed=1, progress=False)
    kept = entry.prototype()
    assert entry.job.concept == "spring (season)"
    assert kept.history == pytest.approx(direct.history, abs=1e-5)
    assert kept.scores == pytest.approx(direct.scores, abs=1e-3)


def test_controls_have_the_norm_of_their_concept(tiny_vlm: nd.VLM, whole: Path) -> None:
    (entry,) = [e for e in Store(whole).entries() if e.job.control and e.job.layer == 1 and e.job.seed == 0]
    real = nd.concept(tiny_vlm, entry.job.words, 1)
    told = entry.prototype().direction
    assert told["norm"] == pytest.approx(real.norm, rel=1e-5)


def test_pooling_of_a_job_replaces_that_of_the_settings(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    nd.sweep(tiny_vlm, [Job("dog", pooling="mean"), Job("dog")], tmp_path, settings=FEW, progress=False)
    told = {e.job.pooling: e.prototype().settings["pooling"]["is"] for e in Store(tmp_path).entries()}
    assert told == {"mean": "Mean", "": "Attention"}


def test_a_second_run_makes_nothing(tiny_vlm: nd.VLM, whole: Path) -> None:
    before = contents(whole)
    done = nd.sweep(tiny_vlm, jobs(seeds=[0, 1], controls=1), whole, settings=FEW, progress=False)
    assert (done.made, done.found, done.ok) == (0, 20, True)
    assert contents(whole) == before


def test_settings_may_depend_on_the_layer(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    nd.sweep(tiny_vlm, jobs(), tmp_path, settings=lambda layer: FEW.but(steps=layer), progress=False)
    assert all(len(e.prototype().history) == e.job.layer for e in Store(tmp_path).entries())


# -- interruption ------------------------------------------------------------------------------------------------


def test_an_interrupted_sweep_goes_on_with_the_same_bits(
    tiny_vlm: nd.VLM, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Store.put, []

    def put(self: Store, key: str, job: Job, prototype: nd.Prototype) -> Path:
        calls.append(key)
        if len(calls) in (4, 9):  # in the midst of a chunk
            raise KeyboardInterrupt
        return real(self, key, job, prototype)

    monkeypatch.setattr(Store, "put", put)
    wanted = jobs(seeds=[0, 1], controls=1)
    first = nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False)
    assert first.interrupted
    assert not first.ok
    assert first.made == 3
    second = nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False)
    assert second.interrupted
    last = nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False)
    assert last.ok
    assert contents(tmp_path) == contents(whole)


def test_shards_together_are_the_whole(tiny_vlm: nd.VLM, whole: Path, tmp_path: Path) -> None:
    for i in range(3):
        nd.sweep(tiny_vlm, jobs(seeds=[0, 1], controls=1), tmp_path, settings=FEW, shard=(i, 3), progress=False)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_wrong_shards(tiny_vlm: nd.VLM, tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"i from 0 to n - 1"):
        nd.sweep(tiny_vlm, jobs(), tmp_path, settings=FEW, shard=shard, progress=False)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch; torch.set_num_threads(1)
import tiny, test_sweep
import nnsight_dream as nd
tiny.quiet()
model, processor = tiny.gemma3()
done = nd.sweep(nd.load(model, processor=processor), test_sweep.jobs(seeds=[0, 1], controls=1), sys.argv[1],
                settings=test_sweep.FEW, progress=False)
sys.exit(0 if done.ok else 3)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(Path(__file__).parent)])


def test_killed_outright_and_two_at_once(whole: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as something is there; then two processes on one folder finish it."""
    victim = start(tmp_path)
    deadline = time.time() + 120
    while not list(tmp_path.glob("jobs/*/job.json")):
        assert time.time() < deadline
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    both = [start(tmp_path), start(tmp_path)]
    assert [p.wait(120) for p in both] == [0, 0]
    pictures = {k: v for k, v in contents(tmp_path).items() if ".tmp" not in k}
    assert pictures == contents(whole)


def test_a_full_disk_ends_it_and_space_lets_it_go_on(
    tiny_vlm: nd.VLM, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = store.write_whole, [7]

    def write(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    from nnsight_dream.synthesis import prototype

    monkeypatch.setattr(store, "write_whole", write)
    monkeypatch.setattr(prototype, "write_whole", write)
    wanted = jobs(seeds=[0, 1], controls=1)
    with pytest.raises(OSError, match="No space left"):
        nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False)
    left[0] = 10**9
    assert nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False).ok
    assert contents(tmp_path) == contents(whole)


# -- faults ------------------------------------------------------------------------------------------------------


def test_a_failing_job_is_recorded_and_the_rest_goes_on(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    wanted = [Job("dog", layer=1), Job("nothing", layer=1, prompt="  "), Job("dog", layer=99), Job("cat", layer=1)]
    done = nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False)
    assert done.made == 2
    assert len(done.failed) == 2
    assert not done.ok
    kept = {f.job.concept: f for f in Store(tmp_path).failures()}
    assert "layers 1 to 4" in next(f.error for f in Store(tmp_path).failures() if f.job.layer == 99)
    assert "Traceback" in kept["nothing"].trace


def test_a_climb_that_raises_fails_alone(tiny_vlm: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweeping.climb_pairs

    def climb(vlm: nd.VLM, pairs: list[tuple[nd.Direction, int]], *rest: Any) -> Any:
        if any(d.label == "cat" for d, _ in pairs):
            raise FloatingPointError("not finite")
        return real(vlm, pairs, *rest)

    monkeypatch.setattr(sweeping, "climb_pairs", climb)
    done = nd.sweep(tiny_vlm, [Job("dog"), Job("cat"), Job("fox")], tmp_path, settings=FEW, progress=False)
    assert done.made == 2
    assert list(done.failed.values()) == ["not finite"]
    monkeypatch.undo()
    assert nd.sweep(tiny_vlm, [Job("dog"), Job("cat"), Job("fox")], tmp_path, settings=FEW, progress=False).ok
    assert not list(Store(tmp_path).failures())


def test_a_failed_job_is_tried_alone(tiny_vlm: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, climbed = sweeping.climb_pairs, []

    def climb(vlm: nd.VLM, pairs: list[tuple[nd.Direction, int]], *rest: Any) -> Any:
        climbed.append([d.label for d, _ in pairs])
        if any(d.label == "cat" for d, _ in pairs):
            raise FloatingPointError("not finite")
        return real(vlm, pairs, *rest)

    monkeypatch.setattr(sweeping, "climb_pairs", climb)
    wanted, settings = [Job("dog"), Job("cat"), Job("fox")], FEW.but(at_once=6)
    nd.sweep(tiny_vlm, wanted, tmp_path, settings=settings, progress=False)
    assert climbed == [["dog", "cat", "fox"], ["dog"], ["cat"], ["fox"]]
    for _ in range(2):
        climbed.clear()
        done = nd.sweep(tiny_vlm, wanted, tmp_path, settings=settings, progress=False)
        assert climbed == [["cat"]]
        assert (done.made, done.found, list(done.failed.values())) == (0, 2, ["not finite"])
        assert [f.job.concept for f in Store(tmp_path).failures()] == ["cat"]


# -- damage ------------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "a link":
        path.unlink()
        path.symlink_to("/etc/hostname")
    else:
        bit = bytes([data[len(data) // 2] ^ 1])
        ways = {"empty": b"", "cut": data[:-9], "a bit": data[: len(data) // 2] + bit + data[len(data) // 2 + 1 :]}
        path.write_bytes(ways[how])


def test_what_is_not_whole_is_made_anew_and_said(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    wanted = [Job("dog"), Job("cat")]
    nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False)
    before = contents(tmp_path)
    store = Store(tmp_path)
    (entry, _) = store.entries()
    prototype = entry.prototype()
    store.add_answers(entry.key, "j", [{"said": "a dog"}])
    for name in ("prototype.png", "heat.png", "prototype.json", "job.json"):
        for how in ("gone", "a link", "empty", "cut", "a bit"):
            damage(entry.folder / name, how)
            assert not store.has(entry.key), (name, how)
            if (entry.folder / "job.json").exists() and name != "job.json":
                with pytest.raises(ValueError, match=f"{name} .*makes it anew"):
                    entry.prototype()
                assert name in store.flaw(entry.key)
            for path in (entry.folder / "job.json", entry.folder / name):  # mended in place, with its answers
                if path.is_symlink():
                    path.unlink()
            store.note(entry.key, entry.record["of"])
            store.put(entry.key, entry.job, prototype)
            assert store.has(entry.key)
    assert store.answers(entry.key, "j") == [{"said": "a dog"}]
    damage(entry.folder / "prototype.png", "a bit")
    with pytest.warns(UserWarning, match=r"one finished job is not whole and made anew: .*: prototype.png is not as"):
        done = nd.sweep(tiny_vlm, wanted, tmp_path, settings=FEW, progress=False)
    assert (done.made, done.found, list(done.damaged)) == (1, 1, [entry.key])
    assert "1 made, 1 of them anew since damaged" in str(done)
    assert {k: v for k, v in contents(tmp_path).items() if "answers" not in k} == before


def test_links_do_not_lead_out_of_a_store(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    planned = sweeping.plan(tiny_vlm, [Job("dog")], settings=FEW)
    (key,) = planned.chunks[0].keys
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "store" / "jobs").mkdir(parents=True)
    (tmp_path / "store" / "jobs" / key).symlink_to(outside)
    with pytest.raises(ValueError, match="a link that leads out of the store; remove the link"):
        nd.sweep(tiny_vlm, [Job("dog")], tmp_path / "store", settings=FEW, progress=False)
    (tmp_path / "store" / "jobs" / key).unlink()
    (tmp_path / "linked").symlink_to(tmp_path / "store")  # the store itself may be one
    assert nd.sweep(tiny_vlm, [Job("dog")], tmp_path / "linked", settings=FEW, progress=False).ok
    (tmp_path / "store" / "jobs" / key / "answers-j.jsonl").symlink_to(outside / "answers")
    with pytest.raises(ValueError, match="leads out of the store"):
        Store(tmp_path / "store").add_answers(key, "j", [{"said": "x"}])
    assert list(outside.iterdir()) == []


def test_drafts_of_killed_processes_are_swept_up(tiny_vlm: nd.VLM, whole: Path, tmp_path: Path) -> None:
    import fcntl

    place = tmp_path / "jobs" / "one"
    (tmp_path / "failed").mkdir(parents=True)
    place.mkdir(parents=True)
    left = [place / f".job.json.{'a' * 32}.tmp", tmp_path / "failed" / f".x.json.{'b' * 32}.tmp"]
    held, other = place / f".heat.png.{'c' * 32}.tmp", place / ".mine.tmp"
    for path in (*left, held, other):
        path.write_bytes(b"half")
    with open(held) as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)  # as the process that writes it does
        assert Store(tmp_path).tidy() == 2
        assert not any(path.exists() for path in left)
        assert held.exists()
    assert Store(tmp_path).tidy() == 1
    assert other.exists()


def test_an_impossible_folder_is_said_before_work(tiny_vlm: nd.VLM, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sweeping, "plan", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(NotADirectoryError, match="file is a file"):
            nd.sweep(tiny_vlm, [Job("dog")], folder, settings=FEW, progress=False)
    with pytest.raises(ValueError, match=r"folder='': a path is needed; for the folder you are in, give '\.'"):
        nd.sweep(tiny_vlm, [Job("dog")], "", settings=FEW, progress=False)
    with pytest.raises(OSError, match="name too long"):
        nd.sweep(tiny_vlm, [Job("dog")], tmp_path / ("x" * 300), settings=FEW, progress=False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"0\.0 MB are free, 1\.0 MB are needed; give another folder"):
        nd.sweep(tiny_vlm, [Job("dog")], tmp_path / "full", settings=FEW, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_stores_of_older_versions_are_read(whole: Path, tmp_path: Path) -> None:
    import json
    import shutil

    (entry, *_) = Store(whole).entries()
    old = tmp_path / "jobs" / entry.key
    shutil.copytree(entry.folder, old)
    for name, more in (("job.json", ("model", "revision", "settings", "of")), ("prototype.json", ())):
        record = json.loads((old / name).read_text())
        kept = {k: v for k, v in record.items() if k not in ("files", "digest", *(more if name == "job.json" else ()))}
        (old / name).write_text(json.dumps(kept))
    (again,) = Store(tmp_path).entries()
    assert Store(tmp_path).has(entry.key)
    assert (again.job, again.model) == (entry.job, entry.model)
    assert again.prototype().history == entry.prototype().history
    damage(old / "prototype.png", "cut")
    assert not Store(tmp_path).has(entry.key)


def test_a_changed_answer_is_seen(tmp_path: Path) -> None:
    shelf = Store(tmp_path)
    (tmp_path / "jobs" / "k").mkdir(parents=True)
    shelf.add_answers("k", "j", [{"said": "ä", "score": 0.1}, {"said": "b"}])
    path = tmp_path / "jobs" / "k" / "answers-j.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"said": "b"', b'"said": "c"'))
    with pytest.raises(ValueError, match="line 2, is not as it was written; remove the line"):
        shelf.answers("k", "j")


# -- the store ---------------------------------------------------------------------------------------------------


def test_a_store_on_a_file_or_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="a folder is needed"):
        Store(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="nnsight-dream sweep makes one"):
        Store(tmp_path / "none", must_exist=True)
    with pytest.raises(ValueError, match="is no key"):
        Store(tmp_path).has("../x")


def test_answers_are_kept_line_by_line_and_a_torn_line_is_dropped(whole: Path, tmp_path: Path) -> None:
    shelf = Store(tmp_path)
    (tmp_path / "jobs" / "k").mkdir(parents=True)
    shelf.add_answers("k", "a/judge", [{"text": "zwei\nZeilen ä"}, {"n": 2}])
    (path,) = (tmp_path / "jobs" / "k").glob("answers-*.jsonl")
    with open(path, "ab") as file:
        file.write(b'{"torn": ')
    assert shelf.answers("k", "a/judge") == [{"text": "zwei\nZeilen ä"}, {"n": 2}]
    shelf.add_answers("k", "a/judge", [{"n": 3}])
    assert shelf.answers("k", "a/judge")[-2:] == [{"n": 2}, {"n": 3}]
    assert shelf.judges() == ["a-judge"]
    path.write_bytes(b"no json\n{}\n")
    with pytest.raises(ValueError, match="line 1, is not an answer"):
        shelf.answers("k", "a/judge")


def _add(folder: Path, who: int) -> None:
    for n in range(40):
        Store(folder).add_answers("k", "j", [{"who": who, "n": n, "pad": "x" * 3000}])


def test_answers_of_many_processes_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "k").mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(tmp_path, who)) for who in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    rows = Store(tmp_path).answers("k", "j")
    assert sorted((r["who"], r["n"]) for r in rows) == [(w, n) for w in range(4) for n in range(40)]


def test_a_claim_is_free_once_its_holder_is_gone(tmp_path: Path) -> None:
    shelf = Store(tmp_path)
    with shelf.claim("c") as mine:
        assert mine
        with shelf.claim("c") as again:
            assert not again
    with shelf.claim("c") as mine:
        assert mine


def test_a_broken_record_says_what_to_do(tmp_path: Path) -> None:
    place = tmp_path / "jobs" / "k"
    place.mkdir(parents=True)
    (place / "job.json").write_text("{")
    with pytest.raises(ValueError, match="remove the folder to make it anew"):
        list(Store(tmp_path).entries())


# -- display and estimate ----------------------------------------------------------------------------------------


def test_plain_lines_tell_counts_and_the_end(
    tiny_vlm: nd.VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nd.sweep(tiny_vlm, [*jobs(), Job("dog", layer=99)], tmp_path, settings=FEW, progress=None)
    lines = capsys.readouterr().err.splitlines()
    assert "8 of 8 done, 0 running, 1 failed" in lines[-2]
    assert "a minute" in lines[-2]
    assert lines[-1].startswith("sweep: 8 made, 0 there before, 1 failed")


def test_the_bar_counts_shares_of_chunks(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    planned = sweeping.plan(tiny_vlm, jobs(), settings=FEW)
    counted = sweep_display._Count(planned, nd.Swept(Store(tmp_path)))
    chunk = planned.chunks[0]
    counted.tell("begun", chunk, 0)
    assert counted.pictures == 0
    counted.tell("step", chunk, 0)
    assert counted.pictures == pytest.approx(len(chunk.jobs) / 3)
    assert f"{len(chunk.jobs)} running" in str(counted)


def test_an_estimate_grows_with_the_steps(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    few = sweeping.plan(tiny_vlm, jobs(), settings=FEW)
    many = sweeping.plan(tiny_vlm, jobs(), settings=FEW.but(steps=3000))
    assert sweeping.estimate(tiny_vlm, many) > 50 * sweeping.estimate(tiny_vlm, few) > 0
    assert few.left(Store(tmp_path)) == list(few.chunks)


def test_an_estimate_is_quick_and_close_or_none(
    tiny_vlm: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnsight_dream.synthesis import timing

    settings = FEW.but(steps=40, at_once=16)
    planned = sweeping.plan(tiny_vlm, jobs(seeds=[0, 1]), settings=settings)
    began = time.perf_counter()
    expected = sweeping.estimate(tiny_vlm, planned)
    assert time.perf_counter() - began < 4  # two by itself; other work may go on here
    began = time.perf_counter()
    nd.sweep(tiny_vlm, jobs(seeds=[0, 1]), tmp_path, settings=settings, progress=False)
    real = time.perf_counter() - began
    assert expected is not None
    assert 1 / 3 < expected / real < 3  # 1.5 on an idle machine
    assert sweeping.estimate(tiny_vlm, planned, Store(tmp_path)) == 0  # nothing is left
    monkeypatch.setitem(timing.SLOWEST, "cpu", 1e3)  # a model for which a step would take too long
    monkeypatch.setattr(timing, "climb_pairs", lambda *_: pytest.fail("it is climbed"))
    assert sweeping.estimate(tiny_vlm, planned) is None


# -- the paper's concepts ----------------------------------------------------------------------------------------


def test_the_papers_concepts() -> None:
    found = paper.concepts()
    assert len(found) == 105
    assert len({c.category for c in found}) == 14
    assert {c.name for c in found if c.name != c.prompt} == {"spring (season)", "music (subject)"}
    known, unknown = paper.known_to_demo()
    assert len(known) >= 60
    assert {c.name for c in unknown} >= {"philosophy", "refusing", "Cleopatra"}
    assert len(known) + len(unknown) == 105
    assert set(paper.HINTS) == {c.category for c in found}


# -- Ray ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "error"), [(dict(model=3), TypeError), (dict(model="demo", workers=0), ValueError)])
def test_wrong_clusters(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ray_workers.Cluster(**given)


def test_a_cluster_of_another_model(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the workers would load 'demo'"):
        nd.sweep(tiny_vlm, jobs(), tmp_path, settings=FEW, ray=ray_workers.Cluster("demo"), progress=False)


@pytest.fixture(scope="module")
def two_workers() -> Any:
    """A Ray of this machine with two CPUs; workers see this folder's modules."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'nnsight-dream[ray]'")
    here = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ray.init(
        num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": here}
    )
    yield ray
    ray.shutdown()


QUICK = dict(settings=nd.Settings.demo().but(steps=4, at_once=4), progress=False)


def test_a_cluster_gives_the_same_bits_though_a_worker_is_killed(
    two_workers: Any, demo_vlm: nd.VLM, tmp_path: Path
) -> None:
    wanted = nd.jobs_of([(n, "animal", "") for n in ("dog", "cat", "fox", "bee", "owl", "pig")], [1, 2, 3])
    alone = nd.sweep(demo_vlm, wanted, tmp_path / "alone", **QUICK)
    assert alone.made == 18
    killed = []

    class Cluster(ray_workers.Cluster):
        def _work(self, left: Any, done: nd.Swept, tell: Any, *rest: Any) -> None:
            def watch(event: str, chunk: Any, step: int) -> None:
                tell(event, chunk, step)
                if done.made >= 4 and not killed:  # half-way
                    killed.append(kill_a_worker())

            super()._work(left, done, watch, *rest)

    done = nd.sweep(demo_vlm, wanted, tmp_path / "spread", ray=Cluster("demo", workers=2), **QUICK)
    assert killed
    assert (done.made, done.ok) == (18, True)
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")


def kill_a_worker() -> int:
    """Ray names its processes by what they run."""
    found = subprocess.run(["pgrep", "-f", "^ray::_Worker"], capture_output=True, text=True, check=True).stdout
    pid = int(found.split()[0])
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_chunk_over_which_workers_are_lost_again_and_again_fails(
    two_workers: Any, demo_vlm: nd.VLM, tmp_path: Path
) -> None:
    class Deadly(ray_workers._Worker):
        def run(self, chunk: Any, tag: Any) -> Any:
            if chunk.jobs[0].layer == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(chunk, tag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_workers, "_Worker", Deadly)
        wanted = [Job("dog", layer=1), Job("dog", layer=2), Job("dog", layer=3)]
        cluster = ray_workers.Cluster("demo", workers=1, attempts=2)
        done = nd.sweep(demo_vlm, wanted, tmp_path, ray=cluster, **QUICK)
    assert done.made == 2
    assert ["lost over it 2 times" in e for e in done.failed.values()] == [True]


def test_a_worker_of_another_model_makes_nothing(demo_vlm: nd.VLM) -> None:
    """Without Ray: what a worker compares, and what it is given by the planner."""
    chunk = sweeping.plan(demo_vlm, [Job("dog")], settings=FEW).chunks[0]
    expected = ray_workers.whole_identity(demo_vlm, 1)
    worker = ray_workers._Worker("demo", ray_workers._like(demo_vlm), 1)
    assert worker.run(chunk, expected)[0].label == "dog"
    for name, other in (
        ("dtype", "torch.bfloat16"),
        ("image_size", [32, 32]),
        ("straight_through", 1.0),
        ("weights", "x"),
    ):
        with pytest.raises(ray_workers.UnlikeModel, match=f"is not that of the sweep: {name} .*planned with"):
            worker.run(chunk, {**expected, name: other})
    zero = nd.load("demo", first_layer=0)
    assert ray_workers._like(zero)["first_layer"] == 0
    assert ray_workers.whole_identity(zero, 0) == expected


def test_a_cluster_of_another_type_is_refused(two_workers: Any, demo_vlm: nd.VLM, tmp_path: Path) -> None:
    cluster = ray_workers.Cluster("demo", options={"dtype": torch.bfloat16})
    with pytest.raises(ValueError, match=r"dtype torch\.bfloat16, planned with torch\.float32"):
        nd.sweep(demo_vlm, [Job("dog")], tmp_path, ray=cluster, **QUICK)
    assert not list(tmp_path.glob("jobs/*"))
    assert not list(Store(tmp_path).failures())


def test_jobs_on_a_server_are_kept_under_new_names_and_the_old_ones_warn(tmp_path: Path) -> None:
    shelf = Store(tmp_path)
    shelf.keep_job("a", "there", "1")
    assert (shelf.kept_job("a", "there"), shelf.kept_job("a", "elsewhere")) == ("1", None)
    for old, new, given in (("recorded", "kept_job", ("a", "there")), ("record", "keep_job", ("a", "there", "2"))):
        with pytest.warns(FutureWarning, match=rf"Store\.{old} is Store\.{new} now"):
            getattr(shelf, old)(*given)
    assert shelf.kept_job("a", "there") == "2"
    with pytest.warns(FutureWarning, match="drop_job"):
        shelf.forget("a")
    assert shelf.kept_job("a", "there") is None
