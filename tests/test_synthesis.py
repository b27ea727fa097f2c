"""Settings, what synthesize takes and gives, and the numbers it reports against a recomputation from the saved file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.engine.pooling import cosine

FEW = nd.Settings(
    steps=2, batch=2, rate=0.5, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),), pooling=nd.Attention(tau=0.1)
)


@pytest.fixture(scope="module")
def directions(tiny_vlm: nd.VLM) -> list[nd.Direction]:
    generator = torch.Generator().manual_seed(1)
    return [
        nd.from_tensor(tiny_vlm, torch.randn(32, generator=generator), layer, label=f"random {layer}")
        for layer in (1, 3)
    ]


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": -1}, "steps=-1: a whole number of at least 0"),
        ({"steps": 2.0}, "steps=2.0: a whole number"),
        ({"steps": True}, "steps=True: a whole number"),
        ({"batch": 0}, "batch=0: a whole number of at least 1"),
        ({"at_once": 0}, "at_once=0: a whole number of at least 1"),
        ({"rate": 0}, "rate=0: a positive number"),
        ({"rate": -0.1}, "rate=-0.1: a positive number"),
        ({"rate": float("nan")}, "rate=nan: a positive number"),
        ({"clip": float("inf")}, "clip=inf: a positive number"),
        ({"optimiser": "Adam"}, "optimiser='Adam': allowed are 'sgd', 'adam' and 'normalised'"),
        ({"schedule": "linear"}, "schedule='linear': allowed are 'constant' and 'cosine'"),
        ({"augment": nd.Noise}, r"not the class: augment=nd\.Noise\(0\.2\)"),
        ({"augment": [nd.Shift(), None]}, r"augment=None: a value is needed: nd\.Shift\(\), "),
        ({"centre": "grey"}, r"centre='grey': a value is needed, not its name: centre=nd\.Grey\(\)"),
        ({"centre": None}, r"nd\.Grey\(\), nd\.NaturalNoise\(\), nd\.Pictures\(\.\.\.\) or a tensor"),
        ({"pooling": "mean"}, r"not its name: pooling=nd\.Mean\(\)"),
        ({"pooling": nd.Mean}, r"not the class: pooling=nd\.Mean\(\)"),
        ({"score": None}, "score=None: a value is needed: nnsight_dream.engine.pooling.cosine or "),
        ({"canvas": 224}, r"not its size: canvas=nd\.MultiResolution\(224\)"),
        ({"canvas": "fourier"}, r"not its name: canvas=nd\.Fourier\(224\)"),
        ({"canvas": "multi-resolution"}, r"not its name: canvas=nd\.MultiResolution\(224\)"),
        ({"canvas": nd.Pixels}, r"not the class: canvas=nd\.Pixels\(224\)"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nd.Settings(**wrong)
    with pytest.raises(ValueError, match=words):
        nd.Settings().but(**wrong)


def test_the_smallest_settings_are_allowed() -> None:
    s = nd.Settings(
        steps=0, batch=1, at_once=1, rate=1e-9, clip=1e-9, augment=(), pooling=nd.Mean(), centre=torch.ones(3)
    )
    assert s.but(steps=1).steps == 1
    assert s.steps == 0


@pytest.mark.parametrize(
    ("layer", "rate", "middle"),
    [(1, 0.04, 0), (5, 0.04, 0), (10, 0.15, 1), (15, 0.15, 1), (20, 0.15, 1), (25, 0.15, 1), (30, 0.04, 0)],
)
def test_the_papers_choices(layer: int, rate: float, middle: int) -> None:
    """arXiv 2601.08017, 2.2, 2.3 and appendix E; Direct Ascent Synthesis for shift and noise."""
    for tau_middle, others in ((0.5, 0.005), (0.005, 0.5)):  # which is which is lost: both are offered
        s = nd.Settings.paper(layer, tau_middle=tau_middle)
        assert (s.steps, s.batch, s.rate, s.clip, s.optimiser, s.schedule) == (600, 8, rate, 1.0, "sgd", "constant")
        assert s.pooling == nd.Attention(tau=tau_middle if middle else others, sigma=(2.0, 16.0), detach=False)
    assert nd.Settings.paper(layer) == nd.Settings.paper(layer, tau_middle=0.005)
    assert s.canvas == nd.MultiResolution(448)
    assert s.canvas.ladder == (8, *range(28, 449, 20))
    assert len(s.canvas.ladder) == 23
    assert s.augment == (nd.Shift(fraction=56 / 224), nd.Noise(0.2))
    assert s.score is cosine
    assert s.centre == nd.Grey()


def test_both_readings_of_what_the_paper_lost() -> None:
    assert nd.Settings.paper(1).pooling == nd.Attention(tau=0.5)  # 0.005 was measured worst at layer 1
    assert nd.Settings.paper(1).augment == (nd.Shift(fraction=112 / 448), nd.Noise(0.2))
    narrow = nd.Settings.paper(1, shift=56, detach=True)
    assert narrow.augment == (nd.Shift(fraction=56 / 448), nd.Noise(0.2))
    assert narrow.pooling == nd.Attention(tau=0.5, detach=True)
    told: list[float] = []
    pictures, generator = torch.rand(1, 3, 448, 448), torch.Generator()
    for choice, pixels in ((narrow, 56), (nd.Settings.paper(1), 112)):
        shifted = choice.augment[0](pictures, [generator.manual_seed(0)], 1)
        exact = nd.Shift(pixels=pixels)(pictures, [generator.manual_seed(0)], 1)
        told.append((shifted - exact).abs().max().item())
    assert max(told) == 0
    for wrong in (dict(shift=100), dict(shift=True), dict(layer=0), dict(layer="deep"), dict(layer=True)):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}={next(iter(wrong.values()))!r}"):
            nd.Settings.paper(**{"layer": 1, **wrong})  # type: ignore[arg-type]


def test_the_papers_other_temperatures() -> None:
    with pytest.raises(ValueError, match=r"tau_middle=0.1: the paper has 0.5 and 0.005"):
        nd.Settings.paper(10, tau_middle=0.1)


def test_presets_are_chosen_by_model_and_layer(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    made = nd.synthesize(tiny_vlm, directions[0], steps=0)
    assert (made.settings["optimiser"], made.settings["steps"]) == ("normalised", 0)
    assert made.settings["canvas"]["size"] == 112 == made.image.width  # the model's own side, which is below 448
    assert made.settings == nd.synthesize(tiny_vlm, directions[0], settings="normalised", steps=0).settings
    exact = nd.synthesize(tiny_vlm, directions[0], settings="paper", steps=0)
    assert (exact.settings["optimiser"], exact.settings["rate"]) == ("sgd", 0.04)
    assert exact.settings["canvas"]["size"] == 448 == exact.image.width
    as_demo = dataclasses.replace(tiny_vlm, is_demo=True)
    assert nd.synthesize(as_demo, directions[0], steps=0).settings == nd.Settings.demo().but(steps=0).record() | {
        "terms": []
    }


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("step", "steps"), ("optimizer", "optimiser"), ("center", "centre"), ("augmentation", "augment"), ("lr", "rate")],
)
def test_an_unknown_setting_suggests_the_nearest(
    tiny_vlm: nd.VLM, directions: list[nd.Direction], wrong: str, right: str
) -> None:
    with pytest.raises(TypeError, match=f"no setting '{wrong}'") as error:
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, **{wrong: 1})
    told = str(error.value)
    assert right in told
    if wrong != "lr":
        assert f"did you mean '{right}'?" in told


@pytest.mark.parametrize(("wrong", "right"), [("seeds", "seed"), ("term", "terms"), ("setting", "settings")])
def test_an_unknown_keyword_may_be_meant_for_synthesize(
    tiny_vlm: nd.VLM, directions: list[nd.Direction], wrong: str, right: str
) -> None:
    with pytest.raises(TypeError, match=f"did you mean '{right}'"):
        nd.synthesize(tiny_vlm, directions[0], **{wrong: FEW})


def test_a_record_is_plain_data() -> None:
    s = nd.Settings(
        augment=(nd.Shift(pixels=3), nd.Scale(0.9, 1.1)),
        centre=nd.Pictures([Image.new("RGB", (4, 4))] * 70),
        canvas=nd.MACO(24, magnitude=torch.ones(3, 24, 13)),
    )
    record = s.record()
    assert json.loads(json.dumps(record)) == record
    assert record["augment"][1] == {"is": "Scale", "low": 0.9, "high": 1.1}
    assert record["pooling"] == {"is": "Attention", "tau": 0.5, "sigma": [2.0, 16.0], "detach": False}
    assert record["centre"]["is"] == "Pictures"
    assert record["canvas"]["magnitude"] == "tensor (3, 24, 13)"


# -- what it takes -----------------------------------------------------------------------------------------------


def test_what_is_given_is_what_comes_back(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    one = nd.synthesize(tiny_vlm, directions[0], settings=FEW, seed=3)
    assert isinstance(one, nd.Prototype)
    assert len(one.history) == 2
    for given, seed, expected in (
        (directions[:1], 3, [(0, 3)]),
        (directions[0], [3], [(0, 3)]),
        (tuple(directions), (4, 3), [(0, 4), (0, 3), (1, 4), (1, 3)]),
    ):
        many = nd.synthesize(tiny_vlm, given, settings=FEW, seed=seed)
        assert isinstance(many, nd.Prototypes)
        assert [(p.label, p.seed) for p in many] == [(directions[i].label, s) for i, s in expected]
    assert many[1].history == pytest.approx(one.history, abs=1e-5)


def test_a_prototype_says_where_it_comes_from(tiny_vlm: nd.VLM) -> None:
    d = nd.concept(tiny_vlm, "octopus", "blocks.1.hook_mlp_out", cache=False)
    made = nd.synthesize(tiny_vlm, d, settings=FEW, seed=9, terms=[nd.TotalVariation(0.1)])
    assert (made.label, made.seed, made.model, made.revision) == ("octopus", 9, tiny_vlm.id, None)
    assert made.site == nd.Site(2, "mlp_out")
    assert made.hf_name == "model.language_model.layers.1.post_feedforward_layernorm.output"
    assert made.direction["method"] == "concept"
    assert made.direction["baseline"] == "BASELINE_WORDS"
    assert made.direction["norm"] == pytest.approx(float(d.vector.norm()))
    assert made.settings == FEW.record() | {"terms": [{"is": "TotalVariation", "weight": 0.1}]}
    assert made.versions["torch"] == torch.__version__
    assert made.versions["nnsight-dream"] == nd.__version__
    assert set(made.versions) == {"nnsight-dream", "nnsight", "transformers", "torch"}


@pytest.mark.parametrize(("given", "seed"), [([], 0), (None, [])])
def test_nothing_to_do(tiny_vlm: nd.VLM, directions: list[nd.Direction], given: Any, seed: Any) -> None:
    with pytest.raises(ValueError, match=r"at least one direction and one seed|seed=\[\] asks for nothing"):
        nd.synthesize(tiny_vlm, directions if given is None else given, settings=FEW, seed=seed)


@pytest.mark.parametrize("wrong", ["octopus", ["octopus"], [torch.ones(32)]])
def test_what_is_no_direction(tiny_vlm: nd.VLM, wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=r"a Direction or Feature is needed, not .*: see nd.concept, nd.from_tensor, nd.feature"
    ):
        nd.synthesize(tiny_vlm, wrong, settings=FEW)


@pytest.mark.parametrize("seed", [-1, 2**63, True, [0, 1.5], [None], ["0"]])
def test_impossible_seeds(tiny_vlm: nd.VLM, directions: list[nd.Direction], seed: Any) -> None:
    with pytest.raises(ValueError, match=r"seed.*: a whole number from 0 to 2\*\*63 - 1 is needed"):
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, seed=seed)


def test_the_greatest_seed(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    assert nd.synthesize(tiny_vlm, directions[0], settings=FEW, seed=2**63 - 1).seed == 2**63 - 1


def test_directions_that_do_not_fit(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    direction = directions[0]
    for change, words in (
        ({"vector": torch.ones(31)}, r"is 31 wide, but layer 1 .* is 32 wide: make the direction from this model"),
        ({"vector": torch.zeros(32)}, "is all zeros: it points nowhere"),
        ({"site": nd.Site(9)}, "layer 9 is not in this model"),
        ({"model": "another"}, r"was made from 'another', not from .* nd.from_tensor\(vlm, direction.vector, layer\)"),
    ):
        with pytest.raises(ValueError, match=words):
            nd.synthesize(tiny_vlm, dataclasses.replace(direction, **change), settings=FEW)
    other = dataclasses.replace(direction, model="another")
    meant = nd.from_tensor(tiny_vlm, other.vector, 1)  # as the message advises
    assert nd.synthesize(tiny_vlm, meant, settings=FEW).history


def test_no_step_gives_what_the_canvas_starts_with(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    made = nd.synthesize(tiny_vlm, directions, settings=FEW, steps=0, seed=[0, 1])
    assert [p.history for p in made] == [()] * 4
    assert set(np.asarray(made[0].image).ravel().tolist()) <= {127, 128}
    assert not made[0].interrupted


@pytest.mark.parametrize("seed", [np.int64(3), torch.tensor(3), np.array(3)], ids=lambda s: type(s).__name__)
def test_a_seed_as_numpy_or_torch_has_it(tiny_vlm: nd.VLM, directions: list[nd.Direction], seed: Any) -> None:
    made = nd.synthesize(tiny_vlm, directions[0], settings=FEW, seed=seed, steps=0)
    assert type(made.seed) is int
    assert made.seed == 3
    many = nd.synthesize(tiny_vlm, directions[0], settings=FEW, seed=np.arange(2), steps=0)
    assert [p.seed for p in many] == [0, 1]


def test_settings_by_name_and_by_layer(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    def made(choice: Any, **changes: Any) -> Any:
        return nd.synthesize(tiny_vlm, directions[0], settings=choice, steps=0, **changes).settings

    assert made("demo") == nd.Settings.demo().but(steps=0).record() | {"terms": []}
    assert made(nd.Settings.demo) == made("demo")
    assert made("paper") == nd.Settings.paper(1).but(steps=0).record() | {"terms": []}
    assert made(nd.Settings.paper, rate=1) == made("paper", rate=1.0)
    assert made(lambda layer: FEW.but(rate=layer))["rate"] == 1.0
    with pytest.raises(
        ValueError, match=r"settings='Paper': allowed are 'normalised', 'demo' and 'paper'; did you mean 'paper'\?"
    ):
        made("Paper")
    for wrong in ({"steps": 1}, nd.Settings, 3, lambda layer: None):
        with pytest.raises(
            TypeError, match=r"settings=.*: Settings, or a function from a layer to Settings, is needed"
        ):
            made(wrong)


def test_settings_take_numbers_of_numpy_and_torch() -> None:
    s = FEW.but(steps=np.int64(3), batch=torch.tensor(2), rate=np.float32(0.5), clip=torch.tensor(2.0))
    assert s == FEW.but(steps=3, batch=2, rate=0.5, clip=2.0)
    assert {type(v) for v in (s.steps, s.batch)} == {int}
    assert {type(v) for v in (s.rate, s.clip)} == {float}
    json.dumps(s.record())


def test_a_term_by_itself_and_what_is_none(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    def made(terms: Any) -> Any:
        return nd.synthesize(tiny_vlm, directions[0], settings=FEW, terms=terms, progress=False)

    for term in (nd.TotalVariation(0.1), nd.Away(directions[1]), lambda step: -step.pictures.mean((1, 2, 3))):
        assert made(term).history == made([term]).history
    for wrong in (None, "smooth", 3, [nd.TotalVariation], nd.TotalVariation, ["smooth"], [None]):
        with pytest.raises(TypeError, match=r"terms.*: a term .* or a list of them, is needed"):
            made(wrong)
    for wrong in ("bar", 1, print.__class__):
        with pytest.raises(TypeError, match=r"progress=.*: True, False, None, or a function"):
            nd.synthesize(tiny_vlm, directions[0], settings=FEW, progress=wrong)  # type: ignore[arg-type]


def test_each_direction_has_the_settings_of_its_own_layer(
    directions: list[nd.Direction], monkeypatch: pytest.MonkeyPatch, tiny_vlm: nd.VLM
) -> None:
    def paper(layer: int) -> nd.Settings:
        return FEW.but(rate=0.1 * layer, pooling=nd.Attention(tau=0.1 * layer))

    monkeypatch.setattr(nd.Settings, "paper", staticmethod(paper))
    order = [directions[1], directions[0], directions[1]]
    together = nd.synthesize(tiny_vlm, order, settings="paper", seed=[0, 1], progress=False)
    assert [(p.label, p.seed) for p in together] == [(d.label, s) for d in order for s in (0, 1)]
    for made in together:
        layer = made.site.layer
        alone = nd.synthesize(tiny_vlm, directions[layer // 2], settings="paper", seed=made.seed, progress=False)
        assert made.settings == alone.settings
        assert made.settings["rate"] == pytest.approx(0.1 * layer)
        assert made.history == pytest.approx(alone.history, abs=1e-5)
    steps: list[int] = []
    nd.synthesize(tiny_vlm, order, settings="paper", progress=lambda step, scores: steps.append(len(scores)))
    assert steps == [2, 2, 1, 1]  # those of one layer in one batch
    changes = {"rate": 0.5, "pooling": nd.Mean(), "progress": lambda step, scores: steps.append(len(scores))}
    nd.synthesize(tiny_vlm, order, settings="paper", **changes)
    assert steps[4:] == [3, 3]  # where nothing differs, all


# -- telling -----------------------------------------------------------------------------------------------------


def test_progress_to_a_function(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    told = []
    made = nd.synthesize(
        tiny_vlm,
        directions,
        settings=FEW,
        seed=[0, 1],
        progress=lambda step, scores: told.append((step, scores.clone())),
    )
    assert [step for step, _ in told] == [0, 1]
    assert all(scores.shape == (4,) for _, scores in told)
    for j, one in enumerate(made):
        assert one.history == tuple(scores[j].item() for _, scores in told)


def test_progress_as_a_bar(
    tiny_vlm: nd.VLM, directions: list[nd.Direction], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for quiet in (None, False):  # no terminal here
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, progress=quiet)
        assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    nd.synthesize(tiny_vlm, directions, settings=FEW, seed=[0, 1], at_once=2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", err)
    assert "climbing" in shown
    assert "score" in shown
    assert "8/8" in shown


# -- the numbers on the finished picture -------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "close"), [(112, 1e-4), (40, 1e-2)])
def test_final_scores_are_those_of_the_saved_file(
    tiny_vlm: nd.VLM,
    tiny_parts: tuple,
    directions: list[nd.Direction],
    tmp_path: Path,
    size: int,
    close: float,
) -> None:
    """From the PNG, by the model's own processor, a whole forward pass and the formulas in NumPy."""
    hf, processor = tiny_parts
    made = nd.synthesize(
        tiny_vlm, directions, settings=FEW, steps=4, canvas=nd.Pixels(size), terms=[nd.TotalVariation(1)]
    )
    made.save(tmp_path)
    for direction in directions:
        (folder,) = tmp_path.glob(f"random-{direction.site.layer}-*")
        pixels = processor.image_processor(images=[Image.open(folder / "prototype.png")], return_tensors="pt")
        with torch.no_grad():
            patches = reference.patches(hf, processor, pixels["pixel_values"], direction.site.layer)[0]
            grey = reference.patches(hf, processor, torch.zeros(1, 3, 112, 112), direction.site.layer)[0].mean(0)
        centred, vector = (patches - grey).numpy(), direction.vector.numpy()
        pooled, weights = reference.attention(centred, vector, 4, 4, 0.1, (2.0, 16.0), 1.0)
        one = nd.Prototype.load(folder)
        assert one.scores.keys() == {"attention", "mean", "max"}
        assert one.scores["attention"] == pytest.approx(reference.cosine(pooled, vector), abs=close)
        assert one.scores["mean"] == pytest.approx(reference.cosine(centred.mean(0), vector), abs=close)
        assert one.scores["max"] == pytest.approx(max(reference.cosine(p, vector) for p in centred), abs=close)
        np.testing.assert_allclose(one.heat.ravel(), weights, atol=close)
        assert one.heat.shape == (4, 4)
        assert one.heat.sum() == pytest.approx(1, abs=1e-5)


def test_heat_of_chosen_tokens_lies_at_those_tokens(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    some = dataclasses.replace(directions[0], site=nd.Site(1, tokens=(2, 7, 8)))
    made = nd.synthesize(tiny_vlm, some, settings=FEW)
    assert np.flatnonzero(made.heat).tolist() == [2, 7, 8]
    assert made.heat.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("pooling", [nd.Mean(), nd.Max()])
def test_scores_have_all_poolings_whatever_was_climbed(
    tiny_vlm: nd.VLM, directions: list[nd.Direction], pooling: Any
) -> None:
    made = nd.synthesize(tiny_vlm, directions[0], settings=FEW, pooling=pooling)
    assert set(made.scores) == {"attention", "mean", "max"}
    assert made.heat.sum() == pytest.approx(1, abs=1e-5)
    assert made.settings["pooling"] == {"is": type(pooling).__name__}


# -- the bundled model -------------------------------------------------------------------------------------------


def test_the_demo_draws(demo_vlm: nd.VLM) -> None:
    octopus = nd.concept(demo_vlm, "octopus", layer=4)
    made = nd.synthesize(demo_vlm, octopus, steps=3, batch=1)
    assert made.image.size == (32, 32)
    assert made.settings["pooling"] == nd.Settings.demo().record()["pooling"]
    assert made.history[-1] != made.history[0]


def test_an_old_name_of_a_setting_warns() -> None:
    settings = nd.Settings(batch=4, at_once=9)
    with pytest.warns(FutureWarning, match="pictures_per_pass"):
        assert settings.together == settings.pictures_per_pass == 2
