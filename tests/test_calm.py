"""What the rest of a program has set of torch changes nothing, and threads that share a model get what each would alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.alignment import encoders
from nnsight_dream.demo import bundle
from nnsight_dream.models.reading import mean_patches
from nnsight_dream.state.calm import calm

FEW: dict[str, Any] = {"steps": 2, "batch": 2, "progress": False}


def work() -> dict[str, Any]:
    """Numbers by every door, from loading on."""
    vlm = nd.load("demo")
    sae, feature = nd.demo_sae(), nd.feature("demo", 425)
    seen = [p.image for p in bundle.pictures(["frog"])[:2]]
    octopus = nd.concept(vlm, "octopus", 4, baseline=["cat", "a dog"], cache=False)
    grey = torch.full((1, 3, 32, 32), 0.25, dtype=torch.float32, device="cpu")
    climbed = nd.synthesize(vlm, feature, **FEW)
    return {
        "concept": octopus.vector,
        "difference": (octopus - 0.5 * nd.contrast(vlm, "red", "green", 4)).vector,
        "pictures": nd.from_images(vlm, seen[0], 4).vector,
        "numbers": nd.from_tensor(vlm, [0.1 * i for i in range(vlm.width)], 4).vector,
        "climb": nd.synthesize(vlm, 2 * octopus, canvas=nd.Fourier(32), optimiser="adam", **FEW).history,
        "maco": nd.synthesize(
            vlm, octopus, centre=nd.NaturalNoise(count=4), terms=[nd.TotalVariation(0.1)], **FEW
        ).history,
        "feature": (climbed.history, climbed.scores, climbed.readings, np.asarray(climbed.image)),
        "features": [str(f) for f in nd.candidates(vlm, sae, "frog", seen, top=3)],
        "strangeness": str(nd.strangeness(vlm, sae, seen, reference=seen)),
        "judge": repr(nd.DemoJudge().judge(seen[0])),
        "patches": nd.read_pictures(vlm, grey, [2])[nd.Site(2)],
        "mean": mean_patches(vlm, [grey], [2])[nd.Site(2)],
        "image side": encoders.image_side(vlm).read(seen, [0, 2])[2],
        "text side": encoders.text_side(vlm).read(["frog", "bee"], [2])[2],
        "tower": encoders.tower(vlm).read(seen, [1])[1],
        "said": str(nd.VLMJudge(vlm, most=2, name="x").say(seen[0], "What is in the image?", seed=1)),
    }


@contextlib.contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(kind: str) -> Iterator[None]:
    torch.set_default_device(kind)
    try:
        yield
    finally:
        torch.set_default_device(None)


def all_of(*states: Any) -> contextlib.AbstractContextManager[Any]:
    stack = contextlib.ExitStack()
    for one in states:
        stack.enter_context(one)
    return stack


STATES: dict[str, Callable[[], Any]] = {
    "float64": lambda: default_type(torch.float64),
    "bfloat16 and autocast": lambda: all_of(default_type(torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16)),
    "float16 and inference mode": lambda: all_of(default_type(torch.float16), torch.inference_mode()),
    "a device without values": lambda: all_of(default_device("meta"), torch.no_grad()),
}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return work()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return np.array_equal(np.asarray(a), np.asarray(b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def state() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("name", STATES)
def test_what_is_set_elsewhere_changes_no_bit(plain: dict[str, Any], name: str) -> None:
    with STATES[name]():
        before = state()
        found = work()
        assert state() == before
    assert [key for key in plain if not same(plain[key], found[key])] == []


def test_deterministic_algorithms_can_be_asked_for(demo_vlm: nd.VLM) -> None:
    octopus = nd.concept(demo_vlm, "octopus", 4, baseline=["cat"], cache=False)
    expected = nd.synthesize(demo_vlm, octopus, **FEW).history
    torch.use_deterministic_algorithms(True)
    try:
        assert nd.synthesize(demo_vlm, octopus, **FEW).history == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_weights_that_no_gradient_passes_are_said() -> None:
    with torch.inference_mode():
        hf, processor = tiny.gemma3(layers=1)
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode\(\)"):
        nd.load(hf, processor=processor)
    vlm = nd.load(hf, processor=processor, check=False)  # to read, as the message says
    assert nd.concept(vlm, "octopus", 1).norm > 0
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode\(\)"):
        nd.synthesize(vlm, nd.concept(vlm, "octopus", 1), **FEW)


def test_calm_in_two_threads_gives_back_the_type_once_both_have_ended() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with calm():
            entered.set()
            leave.wait(5)

    with default_type(torch.float64):
        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait(5)
        with calm():
            pass
        assert torch.get_default_dtype() == torch.float32  # the other thread needs it still
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """What tasks give that begin at once, each in a thread of its own."""
    found: list[Any] = [None] * len(tasks)
    gate = threading.Barrier(len(tasks))

    def do(i: int) -> None:
        gate.wait(10)
        try:
            found[i] = tasks[i]()
        except Exception as error:
            found[i] = repr(error)

    threads = [threading.Thread(target=do, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_that_share_a_model_get_what_each_would_alone() -> None:
    hf, processor = tiny.gemma3(layers=2)
    hf.train()
    one, two = (nd.load(hf, processor=processor) for _ in range(2))  # two hold the same model
    aims = [nd.from_tensor(one, torch.linspace(-1, 1, 32).roll(i), 1 + i) for i in (0, 1)]
    few = {"steps": 4, "batch": 1, "canvas": nd.Pixels(24), "augment": ()}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    judge = nd.VLMJudge(one, most=3, name="x")
    tasks: list[Callable[[], Any]] = [
        lambda: nd.synthesize(one, aims[0], progress=True, **few).history,
        lambda: nd.synthesize(two, aims[1], progress=True, **few).history,
        lambda: nd.concept(one, "octopus", 2, cache=False).vector.tolist(),
        lambda: nd.from_images(two, image, 1).vector.tolist(),
        lambda: encoders.image_side(one).read([image], [0, 1])[1].tolist(),
        lambda: encoders.tower(two).read([image], [0, 1])[1].tolist(),
        lambda: str(judge.say(image, "What is it?", seed=3)),
    ]
    alone = [task() for task in tasks]
    for _ in range(2):
        assert together(*tasks) == alone
    assert all(m.training for m in hf.modules())
    assert all(p.requires_grad for p in hf.parameters())


def test_threads_that_share_a_judge_or_encoder() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, attention_dropout=0.5, **shape)).train()
    eye = encoders.vision_model(model, CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28), name="eye")
    images = [Image.fromarray(np.full((28, 28, 3), value, dtype=np.uint8)) for value in (0, 90, 180)]
    judge = nd.DemoJudge()
    tasks: list[Callable[[], Any]] = [lambda i=i: eye.read([i], [0, 1, 2])[2].tolist() for i in images]
    tasks += [lambda i=i: judge.judge(i)[0].names for i in images]
    alone = [task() for task in tasks]
    assert together(*tasks) == alone
    assert all(m.training for m in model.modules())
