"""Remote models against a stand-in server in another process, where the package cannot be imported, and "local"."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
import tiny_families
import torch

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.checkup.examine import examine
from nnsight_dream.checkup.material import Material
from nnsight_dream.checkup.section import FAIL, PASS, UNSURE
from nnsight_dream.demo import bundle
from nnsight_dream.engine import jobs as shipped_jobs
from nnsight_dream.engine.pooling import cosine
from nnsight_dream.remote import client, loopback, run
from nnsight_dream.remote import errors as remote_errors
from nnsight_dream.remote import payload as shipping
from nnsight_dream.remote.client import _COMPARED, backend, wait_for
from nnsight_dream.synthesis import notes, synthesize
from nnsight_dream.synthesis.prepared import prepare

HERE = Path(__file__).parent
NAME = "dream/demo"
COMMIT = "0" * 40
FEW = nd.Settings.demo().but(steps=2, batch=1, centre=nd.Grey())
WORDS = ["octopus", "fox"]
SOME = nd.Pictures(tuple(p.image for p in bundle.pictures(["fox", "octopus"])))
# all that a payload may name: torch, how nnsight pickles, and a server's own nnsight
ALLOWED = {
    "builtins",
    "collections",
    "_functools",
    "_operator",
    "typing",
    "torch",
    "torch._C",
    "torch._utils",
    "torch.storage",
    "torch.amp.autocast_mode",
    "torch.amp",
    "torch.fft",
    "torch.functional",
    "torch.linalg",
    "torch.nn.functional",
    "math",
    "cloudpickle.cloudpickle",
    "nnsight",
    "nnsight.intervention.envoy",
    "nnsight.intervention.serialization",
    "nnsight.modeling.base",
    "nnsight.modeling.transformers",
    "nnsight.tracing.tracer",
    "nnsight.tracing.util",
}


class Server:
    """The stand-in, and what shall go wrong with it."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"

    def trouble(self, *following: str, **packages: str) -> None:
        httpx.post(f"{self.url}/trouble", json={"next": following, "packages": packages}).raise_for_status()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    command = [sys.executable, str(HERE / "ndif_stub.py"), str(bundle.folder() / "vlm"), NAME, "nnsight_dream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield Server(int(process.stdout.readline()))
        finally:
            os.killpg(process.pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's cache that holds the bundled model's config and processor, and no weights."""
    folder = tmp_path_factory.mktemp("hub")
    place = folder / "models--dream--demo"
    kept = place / "snapshots" / COMMIT
    kept.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    for file in (bundle.folder() / "vlm").iterdir():
        if file.suffix != ".safetensors":
            (kept / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(client, "ASK_EVERY", 0.05)
    monkeypatch.setattr("nnsight_dream.sweeps.servers.WAITS", (0.01, 0.01, 0.01))


@pytest.fixture(autouse=True)
def _no_trouble(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").trouble()


@pytest.fixture(scope="module")
def load(server: Server, hub: Path) -> Callable[..., nd.VLM]:
    return lambda **more: nd.load(NAME, **{"remote": server.url, "cache_dir": str(hub), **more})


@pytest.fixture(scope="module")
def there(load: Callable[..., nd.VLM]) -> nd.VLM:
    return load()


@pytest.fixture(scope="module")
def local() -> nd.VLM:
    return nd.load("demo", remote="local")


def concepts(vlm: nd.VLM, layer: int = 4) -> list[nd.Direction]:
    return nd.concept(vlm, WORDS, layer=layer)


@pytest.fixture(scope="module")
def expected(demo_vlm: nd.VLM) -> nd.Prototypes:
    return nd.synthesize(demo_vlm, concepts(demo_vlm), settings=FEW)


def aims(vlm: nd.VLM) -> list[nd.Direction]:
    """Directions that are quickly there."""
    return [nd.from_tensor(vlm, torch.linspace(-1, 1, vlm.width).roll(i), 2, label=f"line {i}") for i in range(2)]


@pytest.fixture(scope="module")
def plain(demo_vlm: nd.VLM) -> nd.Prototypes:
    return nd.synthesize(demo_vlm, aims(demo_vlm), settings=FEW)


def same(found: Any, wanted: Any, within: float = 1e-5) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.history == pytest.approx(theirs.history, abs=within)
        assert mine.scores == pytest.approx(theirs.scores, abs=within)
        assert abs(mine.heat - theirs.heat).max() < within
        assert (mine.label, mine.site, mine.seed, mine.settings) == (
            theirs.label,
            theirs.site,
            theirs.seed,
            theirs.settings,
        )


# -- the same results --------------------------------------------------------------------------------------------


def test_no_weights_are_here(there: nd.VLM, hub: Path, server: Server) -> None:
    assert not list(hub.rglob("*.safetensors"))
    assert {p.device.type for p in there.hf.parameters()} == {"meta"}
    assert repr(there).endswith(f"on {server.url})")
    assert there.unproved == {"gradient": f"an ascent's first step proves it, on {server.url}"}


@pytest.mark.parametrize("kind", ["local", "server"])
def test_an_ascent_is_one_job(
    kind: str, local: nd.VLM, there: nd.VLM, demo_vlm: nd.VLM, expected: nd.Prototypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = local if kind == "local" else there
    sizes: list[int] = []
    real = run.payload
    monkeypatch.setattr(run, "payload", lambda *a: (blob := real(*a), sizes.append(len(blob)))[0])
    steps: list[tuple[int, int]] = []
    found = nd.synthesize(
        vlm, concepts(vlm), settings=FEW, progress=lambda step, scores: steps.append((step, len(scores)))
    )
    assert len(sizes) == 1
    same(found, expected)
    assert steps == [(0, 2), (1, 2)]
    for mine, theirs, wanted in zip(found, expected, concepts(demo_vlm), strict=True):
        assert mine.image.tobytes() == theirs.image.tobytes()  # rendered here
        assert mine.direction["norm"] == pytest.approx(wanted.norm, rel=1e-5)
        assert {**mine.direction, "norm": 0, "model": "", "revision": ""} == {
            **theirs.direction, "norm": 0, "model": "", "revision": "",
        }  # fmt: skip


@pytest.mark.parametrize("kind", ["local", "server"])
def test_features_agree(kind: str, local: nd.VLM, there: nd.VLM, demo_vlm: nd.VLM) -> None:
    vlm = local if kind == "local" else there
    one, two = nd.feature("demo", [3, 7])
    wanted = [one, one - 0.5 * two, one.but(objective="decoder")]
    found, theirs = (nd.synthesize(v, wanted, settings=FEW) for v in (vlm, demo_vlm))
    same(found, theirs)
    for a, b in zip(found, theirs, strict=True):
        assert a.readings is not None
        assert b.readings is not None
        assert {k: v for k, v in a.readings.items() if k != "parts"} == pytest.approx(
            {k: v for k, v in b.readings.items() if k != "parts"}, abs=1e-5
        )
        assert a.direction == b.direction


@pytest.mark.parametrize("centre", [nd.Grey(), nd.NaturalNoise(count=4), SOME], ids=type)
def test_centres_and_terms_agree(local: nd.VLM, demo_vlm: nd.VLM, centre: Any) -> None:
    made = []
    for vlm in (local, demo_vlm):
        towards = nd.from_tensor(vlm, torch.linspace(-1, 1, vlm.width), 3)
        away = nd.Away(nd.from_tensor(vlm, torch.ones(vlm.width), 2), 0.3)
        few = FEW.but(centre=centre, canvas=nd.MACO(32), pooling=nd.Max(), steps=2)
        made.append(nd.synthesize(vlm, [towards], settings=few, seed=[3, 4], terms=[nd.TotalVariation(0.1), away]))
    same(*made)


def test_concepts_come_when_they_are_looked_at(there: nd.VLM, demo_vlm: nd.VLM) -> None:
    mine, theirs = (nd.concept(v, WORDS, layer=[1, 4]) for v in (there, demo_vlm))
    assert "not fetched yet" in str(mine[0][0])
    for a, b in zip(mine, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x.vector - y.vector).abs().max() < 1e-5
            assert x.provenance["tokens"] == y.provenance["tokens"]
    assert "not fetched" not in str(mine[1][1])  # all of a call come together
    assert (mine[0][1] - mine[1][1]).label == "octopus - fox"
    assert nd.cosine(mine[0][1], mine[1][1]) == pytest.approx(nd.cosine(theirs[0][1], theirs[1][1]), abs=1e-5)
    assert pickle.loads(pickle.dumps(mine[0][0])).norm == mine[0][0].norm
    assert nd.concept(there, "bee", layer=2, baseline=None).norm > 0


def test_pictures_and_text_are_read_there(there: nd.VLM, demo_vlm: nd.VLM) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mine, theirs = (nd.read_pictures(v, x, [5, 2]) for v in (there, demo_vlm))
    assert mine.keys() == theirs.keys()
    assert all((mine[s] - theirs[s]).abs().max() < 1e-5 for s in mine)
    away = nd.contrast(there, ["a red apple"], ["an apple"], layer=3)
    assert (
        nd.cosine(away, dataclasses.replace(nd.contrast(demo_vlm, ["a red apple"], ["an apple"], layer=3), model=NAME))
        > 1 - 1e-6
    )
    mixed = ["blocks.2.hook_resid_post", "model.language_model.layers.2.mlp.down_proj.input", "blocks.2.hook_resid_pre"]
    assert all(v.shape[:2] == (2, 64) for v in nd.read_pictures(there, x, mixed).values())
    with pytest.raises(RuntimeError, match=r"gradients do not leave .*: give pictures.detach\(\)"):
        nd.read_pictures(there, x.requires_grad_(), [2])
    nd.read_pictures(there, x.detach(), [2])


@pytest.mark.parametrize("optimiser", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_a_cut_ascent_is_bit_for_bit_the_uncut_one(optimiser: str, local: nd.VLM) -> None:
    cut = nd.load("demo", remote="local", steps_per_job=2, check=False)
    few = FEW.but(steps=5, optimiser=optimiser, rate=0.05, canvas=nd.Fourier(32))
    whole, pieces = (nd.synthesize(v, aims(v), settings=few, seed=[1, 2]) for v in (local, cut))
    for a, b in zip(whole, pieces, strict=True):
        assert (a.history, a.scores, a.image.tobytes()) == (b.history, b.scores, b.image.tobytes())


# those whose records differ in what travels; the others are as one of these
TELLING = ("gemma3", "qwen2_5_vl", "llava_next", "gemma3n", "pixtral", "chameleon")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in TELLING else pytest.mark.slow)
        for name in ("gemma3", *tiny_families.BUILDERS)
    ],
)
def test_every_family_travels(name: str) -> None:
    if name == "gemma3":
        model, processor = tiny.gemma3()
        options: dict[str, Any] = {}
        size = (112, 112)
    else:
        small = tiny_families.build(name)
        model, processor, options, size = small.model, small.processor, {**small.load, **small.climb}, small.size
    here, away = (nd.load(model, processor=processor, check=False, remote=r, **options) for r in (False, "local"))
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    mine, theirs = (nd.read_pictures(v, x, [2])[v.site(2)] for v in (away, here))
    assert torch.equal(mine, theirs.float())
    few = nd.Settings(steps=2, batch=1, rate=0.5, canvas=nd.MultiResolution(24), augment=(nd.Shift(pixels=3),))
    made = [nd.synthesize(v, nd.from_tensor(v, torch.linspace(-1, 1, v.width), 2), settings=few) for v in (away, here)]
    assert made[0].history == pytest.approx(made[1].history, abs=1e-5)


# -- what travels ------------------------------------------------------------------------------------------------


def test_a_payload_names_nothing_strange(local: nd.VLM, there: nd.VLM) -> None:
    named: set[str] = set()
    canvases = (nd.MultiResolution(32), nd.Pixels(32), nd.Fourier(32), nd.MACO(32))
    augment = (nd.Shift(), nd.Noise(), nd.Scale(0.9, 1.1), nd.Rotate(5))
    poolings = (nd.Mean(), nd.Max(), nd.Attention(), nd.Mean())
    centres = (nd.Grey(), nd.NaturalNoise(), nd.Grey(), SOME)
    for vlm, most in ((there, 4), (local, 1)):
        for canvas, pooling, centre in list(zip(canvases, poolings, centres, strict=True))[:most]:
            few = FEW.but(canvas=canvas, augment=augment, pooling=pooling, centre=centre)
            aims = [*concepts(vlm), nd.feature("demo", 3)]
            away = nd.Away(nd.from_tensor(vlm, torch.ones(vlm.width), 2), 0.3)
            (ascent,) = prepare(vlm, [(a, 0) for a in aims], few, [nd.TotalVariation(), away])
            blob = run.payload(vlm, shipped_jobs.ascent, ascent.piece())
            named |= shipping.named_modules(blob)
            assert len(blob) < 2**20
    assert named <= ALLOWED, named - ALLOWED
    assert {"torch", "builtins", "nnsight.intervention.envoy"} <= named  # it does see some


def test_a_paper_ascent_is_a_few_kilobytes(there: nd.VLM) -> None:
    import zstandard

    (ascent,) = prepare(there, [(concepts(there)[0], 0)], nd.Settings.paper(4))
    blob = run.payload(there, shipped_jobs.ascent, ascent.piece())
    assert len(zstandard.ZstdCompressor(level=6).compress(blob)) < 44_000


@dataclasses.dataclass(frozen=True)
class Sharp:
    """A pooling of the user's own, of which a method is written by dataclass and one inherited."""

    power: float = 2.0
    inner: Any = nd.Mean()

    def __call__(self, patches: Any, direction: Any, grid: Any, progress: float) -> Any:
        pooled, weights = self.inner(patches, direction, grid, progress)
        return pooled * self.factor, weights

    @property
    def factor(self) -> float:
        return float(torch.tensor(self.power).sqrt())


class Base:
    def __call__(self, step: Any) -> Any:
        return self.of(step.pictures)


class Bright(Base):
    def of(self, pictures: Any) -> Any:
        return pictures.mean((1, 2, 3))


def test_choices_of_the_users_own_travel(local: nd.VLM, demo_vlm: nd.VLM) -> None:
    def darker(weight: float, step: Any) -> Any:
        return -weight * step.pictures.mean((1, 2, 3))

    few = FEW.but(pooling=Sharp(), score=lambda pooled, direction: (pooled * direction).sum(-1))
    terms = [Bright(), functools.partial(darker, 0.5), Bright().of.__self__]
    same(*(nd.synthesize(v, aims(v), settings=few, terms=terms) for v in (local, demo_vlm)))


class Grand(Base):
    def __call__(self, step: Any) -> Any:
        return super().__call__(step)


def _with_package(step: Any) -> Any:
    return step.pictures.sum((1, 2, 3)) * len(nd.__all__)


def _with_judge(step: Any) -> Any:
    import_me = rich_text
    return step.pictures.sum((1, 2, 3)) * len(import_me.__name__)


import rich.text as rich_text  # noqa: E402


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (Grand(), r"super\(\) without arguments.*Base.method\(self"),
        (_with_package, r"names nnsight_dream.*import the function itself, or use torch"),
        (_with_judge, r"names rich.text.*torch and math only"),
        (functools.partial(Bright(), image=bundle.pictures(["fox"])[0].image), r"cannot travel.*as a tensor"),
    ],
    ids=["super", "package", "strange", "picture"],
)
def test_what_cannot_travel(local: nd.VLM, term: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        nd.synthesize(local, aims(local), settings=FEW, terms=[term])


def test_the_package_is_there_again_after_a_job(local: nd.VLM) -> None:
    before = dict(sys.modules)
    with pytest.raises(ZeroDivisionError):
        nd.synthesize(local, aims(local), settings=FEW, terms=[lambda step: 1 / 0])
    assert {k for k in before if k.startswith("nnsight_dream")} <= set(sys.modules)
    assert all(sys.modules[k] is v for k, v in before.items() if k.startswith("nnsight_dream"))


# -- no silent nothing -------------------------------------------------------------------------------------------


def test_a_cut_graph_is_an_error_that_says_what_to_do(there: nd.VLM, server: Server) -> None:
    wanted = aims(there)
    server.trouble("cut")
    with pytest.raises(
        RuntimeError, match=r"step 0: no gradient reaches.*sandbox.*'trusted' tag.*pip install ndif.*without remote="
    ):
        nd.synthesize(there, wanted, settings=FEW)
    nd.synthesize(there, wanted, settings=FEW)


def test_what_a_job_raises_is_raised_here(there: nd.VLM) -> None:
    few = FEW.but(score=lambda pooled, direction: (pooled - pooled).sum(-1) / 0)
    with pytest.raises(FloatingPointError, match=r"^step 0: the score of job \[0, 1\] is not finite"):
        nd.synthesize(there, aims(there), settings=few)


def test_image_maths_is_done_in_full_precision(demo_vlm: nd.VLM, local: nd.VLM) -> None:
    few = FEW.but(canvas=nd.Fourier(32), pooling=nd.Attention())
    seen: list[torch.dtype] = []

    def score(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        seen.append((pooled.unsqueeze(1) @ direction.unsqueeze(2)).dtype)
        return cosine(pooled, direction)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        nd.synthesize(demo_vlm, aims(demo_vlm), settings=few.but(score=score))
        assert (torch.ones(1, 2, 2) @ torch.ones(1, 2, 2)).dtype == torch.bfloat16
    assert set(seen) == {torch.float32}


# -- the life of a job -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["drop", pytest.param("die", marks=pytest.mark.slow), "refuse:503:reconnecting"])
def test_a_job_that_a_server_loses_is_sent_again(
    there: nd.VLM, server: Server, plain: nd.Prototypes, trouble: str
) -> None:
    wanted = aims(there)
    server.trouble(trouble)
    said: list[str] = []
    watch = lambda step, scores: None  # noqa: E731
    watch.status = lambda state, line: said.append(state)  # type: ignore[attr-defined]
    same(nd.synthesize(there, wanted, settings=FEW, progress=watch), plain)
    assert any(state.startswith("sent again") for state in said)
    assert "queued: Moved to position 1 in Queue." in said


def test_a_server_that_goes_on_losing_it_is_an_error(there: nd.VLM, server: Server) -> None:
    server.trouble(*["drop"] * 9)
    with pytest.raises(RuntimeError, match=r"the connection to .* broke .*\(tried 4 times\)"):
        nd.synthesize(there, aims(there), settings=FEW)


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        ("refuse:401:Missing or invalid API key.", PermissionError, r"refuses a request without a key.*NDIF_API_KEY"),
        ("refuse:403:Invalid API key.", PermissionError, r"nnsight.login\(\)"),
        ("refuse:404:no such model", RuntimeError, r"does not have dream/demo.*nd.remote_models\(\)"),
        ("refuse:400:nnsight version 0.8.1 is too old", RuntimeError, "does not take jobs of the versions"),
        ("error:Your job exceeded the execution timeout of 5s.", RuntimeError, r"less time.*steps_per_job=100"),
        ("error:Error provisioning model. Please try again later.", RuntimeError, "cannot bring up dream/demo"),
        ("error:The model architecture on this server doesn't match", RuntimeError, r"nnsight.compare\(\)"),
        ("error:Traceback\ntorch.OutOfMemoryError: CUDA out of memory.", RuntimeError, r"Lower batch= or at_once="),
        ("error:Traceback\nKeyError: 'x'", KeyError, "x"),
        ("error:Traceback\nray.exceptions.StrangeError: so", RuntimeError, "the job raised StrangeError"),
    ],
)
def test_troubles_in_words(there: nd.VLM, server: Server, trouble: str, kind: Any, words: str) -> None:
    server.trouble(trouble)
    with pytest.raises(kind, match=words):
        nd.synthesize(there, aims(there), settings=FEW)


def test_other_versions_are_told(load: Callable[..., nd.VLM], server: Server) -> None:
    from importlib.metadata import version

    mine = version("transformers")
    vlm = load()
    _COMPARED.clear()
    try:
        server.trouble(transformers="4.1.0")
        with pytest.raises(
            RuntimeError, match=rf"transformers {mine} here and 4.1.0 there.*pip install transformers==4.1.0"
        ):
            nd.concept(vlm, "fox", layer=1, baseline=None).norm  # noqa: B018
        patch = ".".join([*mine.split(".")[:2], "99"])
        server.trouble(transformers=patch)
        with pytest.warns(UserWarning, match=f"transformers {mine} here and {patch} there"):
            nd.concept(vlm, "fox", layer=1, baseline=None).norm  # noqa: B018
    finally:
        server.trouble(transformers=mine)
        _COMPARED.clear()


def test_a_server_that_is_not_there(hub: Path) -> None:
    vlm = nd.load(NAME, remote="http://127.0.0.1:9", cache_dir=str(hub))
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:9 does not answer .*NDIF_HOST"):
        nd.synthesize(vlm, aims(vlm), settings=FEW)
    with pytest.raises(RuntimeError, match="does not answer"):
        nd.remote_models("http://127.0.0.1:9")


def test_ndifs_own_server_wants_a_key(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    monkeypatch.setattr(CONFIG.API, "HOST", "https://api.ndif.us")
    vlm = nd.load(NAME, remote=True, cache_dir=str(hub))
    with pytest.raises(PermissionError, match=r"login\.ndif\.us, then set NDIF_API_KEY"):
        nd.synthesize(vlm, aims(vlm), settings=FEW)


# -- detached ----------------------------------------------------------------------------------------------------

COLLECT = """
import sys, json, nnsight_dream as nd
made = nd.collect(nd.load(sys.argv[1], remote=sys.argv[2], cache_dir=sys.argv[3]), sys.argv[4])
print(json.dumps([[p.label, p.history, dict(p.scores)] for p in made]))
"""


def test_a_detached_job_is_collected_by_another_process(
    there: nd.VLM, server: Server, hub: Path, plain: nd.Prototypes
) -> None:
    few = FEW.but(at_once=1)  # one picture at once: two jobs
    job = nd.submit(there, aims(there), settings=few)
    assert len(job.id.split(",")) == 2
    command = [sys.executable, "-c", COLLECT, NAME, server.url, str(hub), job.id]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for (label, history, scores), wanted in zip(json.loads(done.stdout.splitlines()[-1]), plain, strict=True):
        assert (label, history) == (wanted.label, pytest.approx(wanted.history, abs=1e-5))
        assert scores == pytest.approx(wanted.scores, abs=1e-5)
    assert job.state() == "completed"
    single = nd.submit(there, aims(there)[0], settings=few).collect()
    assert isinstance(single, nd.Prototype)
    line = torch.linspace(-1, 1, there.width)
    mixed = [nd.from_tensor(there, line, layer, label=str(i)) for i, layer in enumerate([1, 2, 1])]
    ordered = nd.submit(there, mixed, settings=lambda layer: few.but(rate=10.0 * layer, at_once=64))
    assert len(ordered.id.split(",")) == 2  # the two of one layer are one job
    found = [(p.label, p.site.layer, p.settings["rate"]) for p in ordered.collect()]
    assert found == [("0", 1, 10.0), ("1", 2, 20.0), ("2", 1, 10.0)]


def test_jobs_that_cannot_be_collected(
    there: nd.VLM, local: nd.VLM, demo_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vlm in (local, demo_vlm):
        with pytest.raises(ValueError, match="is on no server"):
            nd.submit(vlm, aims(vlm), settings=FEW)
        with pytest.raises(ValueError, match="is on no server"):
            nd.collect(vlm, "x")
    monkeypatch.setattr(wait_for, "__defaults__", (None, 0.0))
    with pytest.raises(LookupError, match="knows no job 'x'"):
        nd.collect(there, "x")
    few = FEW.but(score=lambda pooled, direction: (pooled - pooled).sum(-1) / 0)
    with pytest.raises(FloatingPointError, match="not finite"):
        nd.submit(there, aims(there), settings=few).collect()


@pytest.mark.parametrize("answer", ["y\n", None])
def test_ctrl_c_asks_whether_to_leave_it(
    there: nd.VLM, plain: nd.Prototypes, monkeypatch: pytest.MonkeyPatch, answer: str | None, capsys: Any
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return answer is not None

    def interrupt(step: int, scores: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Terminal(answer or ""))
    with pytest.raises(KeyboardInterrupt) as stopped:
        nd.synthesize(there, aims(there), settings=FEW, progress=interrupt)
    assert ("Leave it to the server" in capsys.readouterr().err) == (answer is not None)
    if answer == "y\n":
        left = stopped.value
        assert isinstance(left, synthesize.LeftRunning)
        assert f"nd.collect(vlm, '{left.job}')" in str(left)
        same(nd.collect(there, left.job), plain)
    else:
        assert not isinstance(stopped.value, synthesize.LeftRunning)


def test_ctrl_c_in_a_job_that_runs_here(local: nd.VLM) -> None:
    def interrupt(step: int, scores: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nd.synthesize(local, aims(local), settings=FEW, progress=interrupt)


# -- sweeps ------------------------------------------------------------------------------------------------------


def test_a_sweep_keeps_jobs_in_flight(
    load: Callable[..., nd.VLM], demo_vlm: nd.VLM, server: Server, tmp_path: Path
) -> None:
    cut = load(steps_per_job=1)
    jobs = nd.jobs_of([(w, "animal", w) for w in ("fox", "octopus", "bee")], [2])
    few = FEW.but(at_once=2)
    server.trouble("", "refuse:503:reconnecting", "error:Replica was evicted")
    swept = nd.sweep(cut, jobs, tmp_path / "there", settings=few, remote_concurrency=3, progress=False)
    assert (swept.made, swept.failed) == (3, {})
    assert not list((tmp_path / "there" / "remote").glob("*"))
    home = nd.sweep(demo_vlm, jobs, tmp_path / "here", settings=few, progress=False)
    pairs = [sorted(s.store.entries(), key=lambda e: (e.job.concept, str(e.job.layer))) for s in (swept, home)]
    same(*([e.prototype() for e in entries] for entries in pairs))
    again = nd.sweep(cut, jobs, tmp_path / "there", settings=few, progress=False)
    assert (again.made, again.found) == (0, 3)
    with pytest.raises(ValueError, match="remote_concurrency=0"):
        nd.sweep(cut, jobs, tmp_path / "there", remote_concurrency=0)


def test_what_a_killed_client_sent_is_collected(
    load: Callable[..., nd.VLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while waiting for the first piece, then for the second; nothing is sent twice."""
    from nnsight_dream.sweeps import servers as remote_sweeps

    jobs, few = nd.jobs_of([("fox", "animal", "fox")], [4]), FEW.but(steps=4)
    sent: list[str] = []
    real = remote_sweeps.send_detached
    monkeypatch.setattr(remote_sweeps, "send_detached", lambda *a: (sent.append(real(*a)), sent[-1])[1])

    class Killed(BaseException):
        pass

    def dies(*_: Any) -> None:
        raise Killed

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            waits = remote_sweeps.wait_for
            before = len(sent)
            patch.setattr(
                remote_sweeps,
                "wait_for",
                lambda vlm, job, said, w=waits, b=before: w(vlm, job) if job in sent[:b] else dies(),
            )
            nd.sweep(load(steps_per_job=2), jobs, tmp_path, settings=few, progress=False)
        assert len(list((tmp_path / "remote").glob("*.json"))) == 1
    swept = nd.sweep(load(steps_per_job=2), jobs, tmp_path, settings=few, progress=False)
    assert (swept.made, len(sent)) == (1, 2)
    (entry,) = swept.store.entries()
    whole = nd.synthesize(load(), nd.concept(load(), "fox", layer=4), settings=few)
    assert entry.prototype().history == pytest.approx(whole.history, abs=1e-6)
    assert entry.prototype().direction["norm"] == pytest.approx(whole.direction["norm"])


def test_a_sweep_goes_on_after_trouble(there: nd.VLM, server: Server, tmp_path: Path) -> None:
    jobs = nd.jobs_of([("fox", "animal", "fox")], [2, 4])
    server.trouble("error:Your job exceeded the execution timeout of 5s.")
    swept = nd.sweep(there, jobs, tmp_path, settings=FEW, progress=False)
    assert (swept.made, len(swept.failed)) == (1, 1)
    assert nd.sweep(there, jobs, tmp_path, settings=FEW, progress=False).made == 1


# -- loading and listing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"remote": "ndif"}, "allowed are True"),
        ({"remote": 3}, "allowed are True"),
        ({"steps_per_job": 0}, "steps_per_job=0"),
        ({"dtype": torch.bfloat16}, "dtype= is the server's choice"),
        ({"up_to_layer": 2, "device": "cpu"}, "up_to_layer, device= are the server's choice"),
        ({"head": False}, "head= is the server's choice"),
    ],
)
def test_options_that_a_server_decides(load: Callable[..., nd.VLM], given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(**given)


def test_only_hub_ids_are_known_to_servers(server: Server, tiny_folder: Path, tiny_parts: tuple) -> None:
    for x in ("demo", str(tiny_folder), tiny_parts[0]):
        with pytest.raises(ValueError, match=r"by their hub ids.*remote='local'"):
            nd.load(x, remote=server.url)


def test_what_needs_weights_says_so(there: nd.VLM, load: Callable[..., nd.VLM]) -> None:
    with pytest.raises(RuntimeError, match="load the model without remote="):
        nd.top_logits(there, torch.ones(there.width), 4)
    with pytest.raises(ValueError, match=r"remote= cannot change a VLM"):
        nd.load(there, remote="local")
    assert len({there.weights_tag(2), load().weights_tag(2)}) == 1
    assert there.fingerprint(2) != there.fingerprint(3)


def test_which_models_a_server_has(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found = nd.remote_models(server.url)
    assert [(m.id, m.state, m.family, m.ready) for m in found] == [
        (NAME, "running", "gemma3", True),
        ("some/cold", "cold", "", False),
    ]
    assert cli.main(["remote", server.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == NAME
    assert cli.main(["remote", server.url]) == 0
    assert "running    dream/demo  (gemma3)" in capsys.readouterr().out


def test_the_command_takes_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nd.Settings, "demo", classmethod(lambda cls: FEW))
    arguments = ["synthesize", "fox", "--model", "demo", "--remote", "local", "--steps", "2", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--steps-per-job", "1", "--json"]) == 0
    assert len(nd.Prototype.load(next(tmp_path.glob("fox*"))).history) == 2


def test_what_is_said_of_an_error_is_the_last_one() -> None:
    told = (
        "Traceback (most recent call last):\n  ...\nValueError: first\n\nDuring...\n\nRuntimeError: step 0: so\nand so"
    )
    found = remote_errors.translated(told, "http://x", "m")
    assert (type(found), str(found)) == (RuntimeError, "step 0: so\nand so")


# -- what a server may not do ------------------------------------------------------------------------------------


class Runs:
    """A pickle of it runs code where it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


NOTE = {
    "rows": [
        {
            "label": "fox",
            "site": nd.Site(4, tokens=(0, 3)),
            "hf_name": "layers.3.output",
            "seed": 1,
            "story": {"model": NAME, "text": "fox"},
            "kind": "direction",
        }
    ],
    "grid": (2, 2),
    "story": {"settings": {"steps": 2}, "versions": {"torch": "2"}},
    "model": NAME,
    "revision": None,
    "image_size": (32, 32),
    "straight_through": None,
    "single": True,
    "places": [0],
}


def changed(**fields: Any) -> bytes:
    found = json.loads(notes.sealed(NOTE, []))
    return json.dumps({**found, **fields}).encode()


def test_a_note_is_json_and_comes_back() -> None:
    history = [torch.rand(3, 1), torch.zeros(0, 1)]
    found = notes.opened(notes.sealed(NOTE, history), "j")
    assert {k: v for k, v in found.items() if k != "history"} == NOTE
    assert all(torch.equal(a, b) for a, b in zip(found["history"], history, strict=True))
    with pytest.raises(TypeError, match="the story of fox cannot be kept for another process"):
        notes.sealed({**NOTE, "story": {"settings": {1j}}}, [])


@pytest.mark.parametrize(
    "note",
    [
        None,
        b"",
        b"{}",
        b"[" * 100000,
        pickle.dumps(NOTE),
        changed(model=3),
        changed(grid=[2]),
        changed(grid=[2**20, 2**20]),
        changed(rows=[]),
        changed(rows=[{"label": "fox"}]),
        changed(places=[0, 1]),
        changed(history=[[[1.0, 2.0]]]),
        changed(history=[["x"]]),
        changed(image_size=["a", "b"]),
        changed(story={"settings": 1, "versions": {}}),
        changed(rows=[{**json.loads(changed())["rows"][0], "site": {"layer": 4, "kind": "x", "tokens": [9]}}]),
        changed(rows=[{**json.loads(changed())["rows"][0], "story": {"link": 3}}]),
    ],
)
def test_a_note_of_another_form_is_refused(note: Any) -> None:
    with pytest.raises(ValueError, match=r"job .j. is no ascent that nd\.submit or nd\.sweep of this version sent"):
        notes.opened(note, "j")


def test_no_note_runs_code(there: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnsight_dream.synthesis.detached.wait_for", lambda *_: {"note": pickle.dumps(Runs(tmp_path / "ran"))}
    )
    with pytest.raises(ValueError, match=r"no ascent that nd\.submit"):
        nd.collect(there, "j")
    assert not (tmp_path / "ran").exists()


def stored(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [2, 4])
def test_answers_hold_tensors_and_plain_values_only(protocol: int, there: nd.VLM, tmp_path: Path) -> None:
    from nnsight.schema.response import ResponseModel, Status

    client = backend(there)
    client.compress = False
    value = {
        "note": b"\x00\xff",
        "numbers": [1, 2.5, None, True, (1, "é"), torch.float32, torch.Size([2])],
        "tensors": [torch.rand(2, 3).to(d) for d in (torch.float32, torch.bfloat16, torch.uint8, torch.complex64)],
    }
    found = client.finalize(stored(value, pickle_protocol=protocol))
    assert (found["note"], found["numbers"]) == (value["note"], value["numbers"])
    assert all(torch.equal(a, b) for a, b in zip(found["tensors"], value["tensors"], strict=True))
    response = client.parse(ResponseModel(id="j", status=Status.COMPLETED, data=b"x").pickle())
    assert (response.status, response.data) == (Status.COMPLETED, b"x")
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), program)
    evil = Runs(tmp_path / "ran")
    for raw in (
        stored({"out": evil}, pickle_protocol=protocol),
        stored(evil, _use_new_zipfile_serialization=False),
        pickle.dumps(evil),
        stored(torch.nn.Linear(2, 2)),
        program.getvalue(),
        b"",
    ):
        for read in (client.finalize, client.parse):
            with pytest.raises(remote_errors.ServerError, match="and that is not opened"):
                read(raw)
    assert not (tmp_path / "ran").exists()


def test_pieces_of_another_form_are_refused() -> None:
    good = {
        "history": torch.rand(2, 1),
        "vectors": [torch.rand(4)],
        "pictures": torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        "measured": [({"mean": 0.5}, torch.rand(4), None)],
    }
    assert notes.check_piece(good, 1) is good
    assert notes.check_piece({**good, "measured": None}, 1)
    for wrong in (
        [],
        {},
        {**good, "history": torch.rand(2, 2)},
        {**good, "vectors": [], "measured": None},
        {**good, "vectors": ["x"]},
        {**good, "pictures": torch.zeros(1, 8, 8, 3)},
        {**good, "pictures": None},
        {**good, "measured": [({"mean": "<b>"}, torch.rand(4), None)]},
        {**good, "measured": [({"mean": 1.0}, torch.rand(4), {"norm": "<b>"})]},
        {**good, "measured": [({"mean": 1.0}, torch.rand(2, 2), None)]},
    ):
        with pytest.raises(remote_errors.ServerError, match="the server's answer is none to an ascent"):
            notes.check_piece(wrong, 1)
    with pytest.raises(remote_errors.ServerError, match=r"a heat map is \(4,\)"):
        notes.check_heat(torch.rand(5), nd.Site(1), (2, 2))


# -- here, as on a server ----------------------------------------------------------------------------------------


def test_a_callback_may_use_the_package(local: nd.VLM) -> None:
    seen = []

    def watch(step: int, scores: Any) -> None:
        sys.modules.pop("nnsight_dream.directions.baseline_words", None)
        seen.append(
            (
                len(importlib.import_module("nnsight_dream.directions.baseline_words").BASELINE_WORDS),
                nd.Settings.demo().steps > 0,
            )
        )

    kept = sys.modules["nnsight_dream.directions.baseline_words"]
    try:
        nd.synthesize(local, aims(local), settings=FEW, progress=watch)
    finally:
        sys.modules["nnsight_dream.directions.baseline_words"] = kept
    assert seen == [(100, True)] * FEW.steps


def test_only_who_reads_a_payload_misses_the_package() -> None:
    def imports() -> str:
        try:
            exec("import nnsight_dream.alignment.pairs", {})
            return "there"
        except ModuleNotFoundError:
            return "absent"

    with loopback._package_absent(), ThreadPoolExecutor(1) as pool:
        assert (imports(), pool.submit(imports).result()) == ("absent", "there")
    assert imports() == "there"


def test_what_another_thread_prints_is_no_line_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    lines = loopback.Lines(lambda step, scores: seen.append(step))
    with contextlib.redirect_stdout(lines), ThreadPoolExecutor(1) as pool:
        pool.submit(print, "@nnsight-dream [7, [0.0]]").result()
        print("@nnsight-dream [8, [0.0]]")
    assert seen == [8]
    assert capsys.readouterr().out == "@nnsight-dream [7, [0.0]]\n"


def test_types_are_those_of_the_model() -> None:
    half, there = (nd.load("demo", dtype=torch.bfloat16, remote=r, check=False) for r in (False, "local"))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mine, theirs = (nd.read_pictures(v, x, [2]) for v in (half, there))
    for site in theirs:
        assert mine[site].dtype == theirs[site].dtype == torch.bfloat16
        assert torch.allclose(mine[site].float(), theirs[site].float(), atol=0.1, rtol=0.05)
    ids = torch.tensor([[2, 3, 4]])
    assert {nd.read_text(v, ids, torch.ones_like(ids), [2])[nd.Site(2)].dtype for v in (half, there)} == {
        torch.bfloat16
    }


def test_options_that_nobody_knows(load: Callable[..., nd.VLM]) -> None:
    with pytest.raises(
        TypeError, match=r"unexpected keyword 'revison' for a model on a server.*did you mean revision=?"
    ):
        load(revison="main")
    with pytest.raises(TypeError, match=r"unexpected keyword .attn_implementation..*it takes revision=, token="):
        load(attn_implementation="eager")


@pytest.mark.parametrize("place", ["server", "local"])
def test_a_baseline_is_kept_where_it_is_wanted(
    place: str, load: Callable[..., nd.VLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNSIGHT_DREAM_CACHE", str(tmp_path))
    made = (lambda: load()) if place == "server" else (lambda: nd.load("demo", remote="local", check=False))
    words = ["a", "bee", "sea"]
    for cache, files in ((False, 0), (True, 1)):
        vlm = made()
        for known in (False, cache):
            found = nd.concept(vlm, "fox", 2, baseline=words, cache=cache)
            assert (found.request.given().known[0] is not None) == known
            wanted = found.vector
        assert len(list(tmp_path.rglob("*.safetensors"))) == files
    again = nd.concept(made(), "fox", 2, baseline=words)  # another process would find it
    assert again.request.given().known[0] is not None
    assert (again.vector - wanted).abs().max() < 1e-6


def test_a_checkup_of_a_model_on_a_server(there: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the weights here is unsure, and says so; what a server can do is done there."""
    monkeypatch.setattr(nd.Settings, "normalised", classmethod(lambda cls, size=448: FEW))
    monkeypatch.setattr(Material, "how_many", lambda self, least, most: 6)
    report = examine(there, quick=True, layers=[1])
    states = {section.name: section.state for section in report.sections}
    assert FAIL not in states.values(), [section.finding for section in report.sections if section.state == FAIL]
    sure = {"record", "pixels", "words", "layers", "sinks"}
    assert {name for name in sure if states[name] == PASS} == sure
    for name in ("activations", "gradient", "numerics", "cost"):
        section = next(section for section in report.sections if section.name == name)
        assert section.state == UNSURE
        assert str(there.remote) in section.finding
    assert len(report.sections[-1].pictures) == 4
