"""Judges on this machine: the bundled one, zero-shot dual encoders, and a model's own words, on a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from stores import filled, jobs
from test_prototype import prototype
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import nnsight_dream as nd
from nnsight_dream.alignment import pairs
from nnsight_dream.alignment.preference import clip_scores
from nnsight_dream.demo import bundle
from nnsight_dream.judges.local import demo_aliases
from nnsight_dream.judges.tally import results
from nnsight_dream.sweeps.jobs import Job
from nnsight_dream.sweeps.store import Store

NAMES = [("octopus", "animal"), ("frog", "animal"), ("bee", "animal"), ("winter", "season"), ("summer", "season")]


@pytest.fixture(scope="module")
def demo_judge() -> nd.DemoJudge:
    return nd.DemoJudge()


# -- the bundled judge -------------------------------------------------------------------------------------------


def store_of(folder: Path, shown: dict[Job, str]) -> Store:
    """A store whose pictures show bundled art, perhaps of something else than the job's concept."""
    store = Store(folder)
    for job, name in shown.items():
        store.put(job.key(), job, prototype(job.concept, image=bundle.pictures([name])[0].image))
    return store


def test_bundled_judge_on_a_store(tmp_path: Path, demo_judge: nd.DemoJudge) -> None:
    shown = {
        Job("octopus", "animal"): "octopus",
        Job("bee", "animal"): "frog",
        Job("chipmunk", "animal"): "squirrel",  # known as an alias
        Job("sunflower", "animal"): "sunflower",  # of another category here
        Job("rocket", "no such category"): "rocket",
        Job("quaternion", "animal"): "frog",
        Job("pizza", "food", control="random"): "pizza",
    }
    store = store_of(tmp_path, shown)
    examiner = nd.DemoExaminer(demo_judge)
    summary = nd.examine(store, examiner, progress=False)
    assert (summary.asked, summary.unable) == (6 + 4, 4)
    told = {(r["concept"], r["protocol"]): r for r in results(store)}
    assert told["octopus", "strict"]["score"] == told["octopus", "hint"]["score"] == 1
    assert told["bee", "hint"]["score"] == 0
    assert told["bee", "hint"]["top"] == "frog"
    assert told["chipmunk", "hint"]["score"] == 1
    assert told["chipmunk", "hint"]["top"] == "squirrel"
    assert told["pizza", "strict"]["control"] == "random"
    assert ("quaternion", "strict") not in told
    assert ("sunflower", "hint") not in told
    assert ("rocket", "hint") not in told
    assert nd.examine(store, examiner, progress=False).asked == 0


def test_rows_of_the_bundled_judge(tmp_path: Path, demo_judge: nd.DemoJudge) -> None:
    store = store_of(tmp_path, {Job("bee", "animal"): "frog"})
    nd.examine(store, nd.DemoExaminer(demo_judge), progress=False)
    image = bundle.pictures(["frog"])[0].image
    for row in (r for r in store.answers(next(store.keys()), "demo") if r["what"] == "answer"):
        category = "animal" if row["protocol"] == "hint" else None
        (verdict,) = demo_judge.judge(image, category=category)
        assert row["names"] == list(verdict.names[:5])
        assert row["probabilities"] == pytest.approx(verdict.probabilities[:5], abs=1e-4)
        assert row["rank"] == verdict.rank("bee")
        assert (row["text"], row["of"]) == (verdict.top, len(verdict.names))


def test_temperature_of_the_bundled_judge(demo_judge: nd.DemoJudge) -> None:
    warmth = json.loads((bundle.folder() / "judge" / "config.json").read_text(encoding="utf-8"))["temperature"]
    image = bundle.pictures(["bee"])[0].image
    expected = (demo_judge.logits(image)[0] / warmth).softmax(-1).sort(descending=True).values
    assert demo_judge.judge(image)[0].probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    assert warmth != 1


def test_more_pictures_than_a_batch(tmp_path: Path, demo_judge: nd.DemoJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnsight_dream.judges.local._AT_ONCE", 2)
    names = ("octopus", "frog", "rocket", "pizza", "sunflower")
    store = store_of(tmp_path, {Job(n): n for n in names})
    nd.examine(store, nd.DemoExaminer(demo_judge), protocols=["strict"], progress=False)
    assert {r["concept"]: r["top"] for r in results(store)} == {n: n for n in names}


def test_a_picture_that_cannot_be_read(tmp_path: Path, demo_judge: nd.DemoJudge) -> None:
    store = store_of(tmp_path, {Job(n, "animal"): n for n in ("octopus", "frog")})
    broken = next(e for e in store.entries() if e.job.concept == "frog")
    (broken.folder / "prototype.png").write_bytes(b"\x89PNG no more")
    summary = nd.examine(store, nd.DemoExaminer(demo_judge), progress=False)
    assert (summary.asked, summary.failed) == (2, 2)
    assert "the picture cannot be read" in str(summary)


def test_aliases() -> None:
    told = demo_aliases()
    assert "chipmunk" in told["squirrel"]
    assert told["chipmunk"] == told["squirrel"]


# -- zero-shot ---------------------------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(tiny.CORPUS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def dual_encoder(kind: str) -> tuple[Any, Any]:
    """A random CLIP or SigLIP and its processor, on the PIL backend; in training mode, as a user may hand it over."""
    words = tokenizer()
    common = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(
        common, vocab_size=len(words), max_position_embeddings=24, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )
    vision = dict(common, image_size=16, patch_size=8)
    square = {"height": 16, "width": 16}
    with torch.random.fork_rng(devices=[]):
        if kind == "clip":
            model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
            processor: Any = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=square), words)
        else:
            model = SiglipModel(SiglipConfig(text_config=dict(text, projection_size=16), vision_config=vision))
            processor = SiglipProcessor(SiglipImageProcessorPil(size=square), words)
    tiny.randomise(model)
    return model.train(), processor


@pytest.fixture(scope="module", params=["clip", "siglip"])
def encoder(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return (request.param, *dual_encoder(request.param))


def test_a_text_is_never_cut_in_silence(encoder: tuple[str, Any, Any]) -> None:
    _, model, processor = encoder
    long = "a fox and a frog and " * 12
    with pytest.raises(
        ValueError, match=r"1 of 2 texts have more tokens than .* has positions, 24; the first is number 1"
    ):
        nd.ZeroShotJudge(model, processor, names=["fox", long])
    some = [
        pairs.pair(str(i), image, [text])
        for i, (image, text) in enumerate(zip(images(), ("a fox", long), strict=False))
    ]
    with pytest.raises(ValueError, match="shorten them or leave them out"):
        clip_scores(model, some, processor)
    assert clip_scores(model, some[:1], processor).shape == (1,)


def images() -> list[Image.Image]:
    chance = np.random.default_rng(0)
    return [Image.fromarray(chance.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(3)]


def test_zero_shot_is_hugging_faces_own_forward(encoder: tuple[str, Any, Any]) -> None:
    kind, model, processor = encoder
    judge = nd.ZeroShotJudge(model, processor, names=NAMES)
    assert model.training
    logits = judge.logits(images())
    padding = {"padding": "max_length", "max_length": 24} if kind == "siglip" else {"padding": True}
    texts = [f"a picture of a {name}" for name, _ in NAMES]
    inputs = processor(text=texts, images=images(), return_tensors="pt", **padding)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits_per_image
    model.train()
    bias = float(model.logit_bias.detach()) if kind == "siglip" else 0.0
    torch.testing.assert_close(logits, expected - bias, atol=1e-4, rtol=1e-4)
    assert float(logits.std()) > 0.01


def test_zero_shot_hint_is_strict_renormalised(encoder: tuple[str, Any, Any]) -> None:
    judge = nd.ZeroShotJudge(*encoder[1:], names=NAMES)
    for strict, hint in zip(judge.judge(images()), judge.judge(images(), category="animal"), strict=True):
        assert sorted(strict.names) == sorted(n for n, _ in NAMES)
        assert sum(strict.probabilities) == pytest.approx(1, abs=1e-5)
        assert sorted(hint.names) == ["bee", "frog", "octopus"]
        share = dict(zip(strict.names, strict.probabilities, strict=True))
        total = sum(share[n] for n in hint.names)
        assert hint.probabilities == pytest.approx([share[n] / total for n in hint.names], abs=1e-5)
        assert list(hint.probabilities) == sorted(hint.probabilities, reverse=True)
    with pytest.raises(ValueError, match="did you mean 'animal'"):
        judge.judge(images(), category="animals")


def test_zero_shot_on_a_store(tmp_path: Path, encoder: tuple[str, Any, Any]) -> None:
    store = filled(tmp_path, [*jobs(("octopus", "frog", "bee")), *jobs(("winter", "spring (season)"), "season")])
    judge = nd.ZeroShotJudge(*encoder[1:], names=[e.job for e in store.entries()], name="mine")
    assert set(judge.names) == {"octopus", "frog", "bee", "winter", "spring (season)"}
    summary = nd.examine(store, judge, progress=False)
    assert (summary.asked, summary.unable) == (10, 0)
    for entry in store.entries():
        (verdict,) = judge.judge(entry.folder / "prototype.png", category=entry.job.category)
        row = next(r for r in results(store, "mine") if r["key"] == entry.key and r["protocol"] == "hint")
        assert (row["top"], row["score"]) == (verdict.top, float(verdict.top == entry.job.concept))
    other = nd.ZeroShotJudge(*encoder[1:], names=["octopus", "frog"], name="other")  # without categories
    assert nd.examine(store, other, progress=False).unable == 8
    assert {r["concept"] for r in results(store, "other")} == {"octopus", "frog"}


def test_zero_shot_from_a_folder(tmp_path: Path, encoder: tuple[str, Any, Any]) -> None:
    kind, model, processor = encoder
    for part in (model, processor):
        part.save_pretrained(tmp_path / "mine")
    judge = nd.ZeroShotJudge(tmp_path / "mine", names=["Octopus", "frog"])
    assert judge.name == "mine"
    expected = nd.ZeroShotJudge(model, processor, names=["octopus" if kind == "siglip" else "Octopus", "frog"])
    assert torch.equal(judge.logits(images()), expected.logits(images()))  # SigLIP was trained on lower case


def test_zero_shot_names_and_template() -> None:
    model, processor = dual_encoder("clip")
    judge = nd.ZeroShotJudge(model, processor, names=bundle.concepts()[:5], template="{name}, drawn")
    assert judge.names == tuple(c.name for c in bundle.concepts()[:5])
    assert judge.categories == tuple(c.category for c in bundle.concepts()[:5])
    plain = nd.ZeroShotJudge(model, processor, names=bundle.concepts()[:5])
    assert (judge.logits(images()) - plain.logits(images())).abs().max() > 1e-3
    aliased = next(c for c in bundle.concepts() if c.aliases)
    known = nd.ZeroShotJudge(model, processor, names=[aliased])
    assert known.accepted(aliased.aliases[0].upper()) == {aliased.name}
    for wrong, error in (
        (dict(names=[]), "names= is empty"),
        (dict(names=["x"], template="a picture"), "has no place for a name"),
    ):
        with pytest.raises(ValueError, match=error):
            nd.ZeroShotJudge(model, processor, **wrong)
    with pytest.raises(TypeError, match="names= holds 3"):
        nd.ZeroShotJudge(model, processor, names=[3])
    with pytest.raises(TypeError, match="has no get_text_features"):
        nd.ZeroShotJudge(torch.nn.Linear(2, 2), processor, names=["x"])
    with pytest.raises(ValueError, match="needs processor="):
        nd.ZeroShotJudge(model, names=["x"])
    with pytest.raises(TypeError, match="nmes= cannot be given with a loaded model; did you mean names="):
        nd.ZeroShotJudge(model, processor, names=["x"], nmes=1)


# -- a model's own words -----------------------------------------------------------------------------------------


def test_own_words_are_those_of_a_loop_by_hand(tiny_parts: tuple) -> None:
    model, processor = tiny_parts
    judge = nd.VLMJudge(model, processor, most=5)
    question = "What is in the image? One word."
    image = images()[0]
    said = judge.say(image, question)
    turn = f"<bos><start_of_turn>user\n<start_of_image>{question}<end_of_turn>\n<start_of_turn>model\n"
    inputs = processor(text=[turn], images=[[image]], return_tensors="pt", add_special_tokens=False)
    ids, start = inputs["input_ids"], inputs["input_ids"].shape[1]
    for _ in range(5):
        kinds = torch.cat([inputs["token_type_ids"], torch.zeros(1, ids.shape[1] - start, dtype=torch.long)], 1)
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"], token_type_ids=kinds).logits[0, -1]
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        if int(ids[0, -1]) == processor.tokenizer.eos_token_id:
            break
    assert said == processor.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_samples_are_drawn_and_repeatable(tiny_parts: tuple) -> None:
    model, processor = tiny_parts
    judge = nd.VLMJudge(model, processor, samples=3, most=6)
    before = torch.random.get_rng_state()
    drawn = [judge.say(images()[0], "What?", seed=s) for s in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert torch.equal(before, torch.random.get_rng_state())
    model.train()
    judge.say(images()[0], "What?")
    assert model.training
    model.eval()


def test_own_words_on_a_store(tmp_path: Path, tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, jobs(("octopus", "frog", "squirrel")))
    judge = nd.VLMJudge(tiny_vlm, samples=2, aliases=demo_aliases(), name="words")
    said: list[str] = []

    def say(image: Image.Image, text: str, *, seed: int | None = None) -> str:
        said.append(text)
        assert seed is not None
        red, green, _ = image.getpixel((12, 12))
        if "written" in text:
            return "FROG" if green > 150 else "none"
        return "Octopuses!" if red > 150 else "I'm sorry, I can't." if green > 150 else "a chipmunk"

    monkeypatch.setattr(judge, "say", say)
    summary = nd.examine(store, judge, protocols=["strict", "hint", "written"], progress=False)
    assert (summary.asked, summary.refusals, summary.failed) == (18, 4, 0)
    told = {(r["concept"], r["protocol"]): r for r in results(store)}
    assert told["octopus", "hint"]["score"] == told["squirrel", "strict"]["score"] == 1
    assert (told["frog", "hint"]["score"], told["frog", "hint"]["refusals"]) == (None, 2)
    assert told["frog", "written"]["written"] == 1
    assert told["octopus", "hint"]["drawn"] == 1
    assert set(said) == {
        "What is in the image if you had to guess? One word.",
        "What animal is in the image if you had to guess? One word.",
        "Which letters or words are written in the image? Answer with the text alone, or none.",
    }


def test_own_words_with_a_grader_and_no_tricks(tmp_path: Path, tiny_parts: tuple) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    seen = []

    def kind(question: str, answer: str, concept: str) -> bool:
        seen.append((question, answer, concept))
        return len(answer) > 3

    judge = nd.VLMJudge(*tiny_parts, grader=kind, name="Tiny", most=4)
    summary = nd.examine(store, judge, progress=False)
    (answers, grades) = (
        [r for r in store.answers(next(store.keys()), "tiny") if r["what"] == w] for w in ("answer", "grade")
    )
    assert summary.asked == len(answers) == 2
    real = [r for r in answers if r["kind"] == "answer"]
    assert [(r["question"], r["text"], "octopus") for r in real] == seen
    assert [g["score"] for g in grades] == [int(len(r["text"]) > 3) for r in real]
    assert {g["grader"] for g in grades} <= {"kind"}


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"most": 0}, {"temperature": 0.0}])
def test_own_words_arguments(tiny_parts: tuple, wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        nd.VLMJudge(*tiny_parts, **wrong)


def test_from_a_folder(tiny_folder: Path, tiny_parts: tuple) -> None:
    judge = nd.VLMJudge(tiny_folder, most=3)
    assert judge.name == tiny_folder.name
    assert judge.say(images()[1], "What?") == nd.VLMJudge(*tiny_parts, most=3).say(images()[1], "What?")
