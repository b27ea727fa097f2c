"""A whole step with the model on torch's "meta" device, which has no values, and everything that is done watched.

What a GPU would refuse or wait for is found without one: tensors of another device among those of an operation, tensors
that are made elsewhere, and values that are asked for, each of which makes the processor wait for the device.
"""

from __future__ import annotations

import copy
import dataclasses
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_families
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import nnsight_dream as nd
from nnsight_dream.engine import jobs, plain
from nnsight_dream.engine.optimise import Climb
from nnsight_dream.engine.pooling import cosine
from nnsight_dream.models.reading import reading

aten, META = torch.ops.aten, torch.device("meta")
COPIES = (aten._to_copy.default, aten.copy_.default)
PACKAGE = Path(nd.__file__).parent


class Watch(TorchDispatchMode):
    """Everything that torch does while it is on.

    mixed   operations on tensors of two devices, but for numbers; made   where tensors were made on the CPU
    waits   where a value was asked for: (file, function); chance   draws without a generator, or not on the CPU
    """

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.made: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.chance: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        if func is aten._local_scalar_dense.default:
            self.waits[self._place()] += 1
            return getattr(args[0], "answer", True) if args[0].is_meta else func(*args)
        devices = {t.device.type for t in given if t.ndim}
        if len(devices) > 1 and func not in COPIES:
            self.mixed.append(f"{func} in {self._place()}")
        if any(t.is_meta for t in given) and self._looks(func, args):
            self.waits[self._place()] += 1
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._draws(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if func is aten.any.default and out.is_meta:
            out.answer = False
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.device.type == "cpu" and t.ndim and not given:
                self.made[self._place()] += 1
        if func in COPIES and len(given) > 0 and given[0].is_meta and getattr(out, "device", META).type == "cpu":
            self.waits[self._place()] += 1
        return out

    def _draws(self, func: Any, args: Any, kwargs: Any) -> None:
        if "attention" in str(func):  # whose dropout is off
            return
        places = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        places |= {torch.device(kwargs["device"]).type} if kwargs.get("device") is not None else set()
        if places - {"cpu"} or not any(isinstance(x, torch.Generator) for x in tree_leaves((args, kwargs))):
            self.chance.append(f"{func} in {self._place()}")

    @staticmethod
    def _looks(func: Any, args: Any) -> bool:
        """Whether the shape of a result depends on values, as of a mask's."""
        if func in (aten.nonzero.default, aten.masked_select.default, aten._unique2.default):
            return True
        return func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])

    @staticmethod
    def _place() -> tuple[str, str]:
        """The innermost line that is not torch's nor this file's."""
        for frame in reversed(traceback.extract_stack()):
            if "/torch/" not in frame.filename and frame.filename != __file__:
                path = Path(frame.filename)
                inside = path.relative_to(PACKAGE) if PACKAGE in path.parents else path.name
                return str(inside), frame.name
        return "", ""


def watched(vlm: nd.VLM, layer: int, steps: int, device: torch.device = META, added: Any = None) -> Watch:
    """What was seen of an ascent's steps on a copy of a model elsewhere, its masks made before, as of a model here."""
    site = vlm.site(layer)
    with vlm.quiet():
        how = reading(vlm, [site], pictures=True)
        there = nd.load(copy.deepcopy(vlm.hf), processor=vlm.processor, family=vlm.family, check=False)
        there.hf.to(device)
        inputs = tree_map_only(torch.Tensor, lambda t: t.to(device), how.constants)
        how = dataclasses.replace(how, device=device, constants=inputs)
        width = vlm.width_at(site)
        aims = [plain.Aim(site, vector=torch.ones(width, device=device)) for _ in range(2)]
        given = plain.Ascent(
            how=how, asked=[], aims=aims, seeds=[0, 1], centres={site: torch.zeros(width, device=device)}, centre=None,
            centre_sites=[], every_centre=[site], norms={}, norms_wanted=[], every_norm=[], references={},
            pooling=nd.WithoutSinks(nd.Attention()), score=cosine,
            poolings={"attention": nd.Attention()}, terms=[plain.Added(call=t) for t in (nd.TotalVariation(), *([] if added is None else [added]))],
            canvas=nd.MultiResolution(48), augment=[nd.Shift(), nd.Noise(), nd.Scale(0.9, 1.1), nd.Rotate(5)],
            plan=Climb(steps=steps + 1, batch=2, rate=0.1, clip=1.0, at_once=None), grid=vlm.grid, until=steps,
            tell=lambda step, score: None,
        )  # fmt: skip
        with Watch() as watch:
            jobs.ascent(there.model, given)
    return watch


def loaded(name: str) -> nd.VLM:
    if name == "gemma3":
        hf, processor = tiny.gemma3()
        return nd.load(hf, processor=processor)
    parts = tiny_families.build(name)
    return nd.load(parts.model, processor=parts.processor, **{**parts.load, **parts.climb}, check=False)


#: Others' own code in transformers asks for values of a picture's size and cannot be run without.
WITHOUT_NUMBERS = ["gemma3", "internvl", "llava", "paligemma2"]
REAL = ["qwen2_5_vl", "gemma4", "idefics3"]
OWN = {("engine/optimise.py", "prove_score"): 1, ("engine/optimise.py", "prove_norms"): 1}  # is it finite?


def own(places: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Those of the package's own code."""
    return {place: count for place, count in places.items() if place[0].startswith("engine/")}


@pytest.mark.parametrize("name", WITHOUT_NUMBERS)
def test_a_step_on_another_device(name: str) -> None:
    vlm = loaded(name)
    one, three = (watched(vlm, 2, steps) for steps in (1, 3))
    assert three.mixed == []
    assert three.chance == []
    assert {place[0] for place in three.made} == {"engine/augment.py"}  # draws, alike for every device
    assert own(three.waits - one.waits) == {place: 2 * count for place, count in OWN.items()}
    others = Counter(place for place in three.waits if place not in OWN)
    assert set(others) <= {
        ("import_utils.py", "torch_compilable_check"),
        ("masking_utils.py", "find_packed_sequence_indices"),
    }


@pytest.mark.parametrize("name", REAL)
def test_no_step_waits_for_the_device_without_need(name: str) -> None:
    vlm = loaded(name)
    one, three = (watched(vlm, 2, steps, torch.device("cpu")) for steps in (1, 3))
    assert own(three.waits - one.waits) == {place: 2 * count for place, count in OWN.items()}
    assert three.chance == []


def test_what_the_watch_sees() -> None:
    """A term of the user's that does each of these wrong things is seen to do it."""
    vlm = loaded("gemma3")

    def term(step: nd.Step) -> torch.Tensor:
        if step.pictures.sum() > 0:
            torch.zeros(3)
        torch.rand(2, device=step.pictures.device)
        return 0 * step.pictures.flatten(1).sum(1)

    seen = watched(vlm, 1, 1, added=term)
    assert sum(seen.waits.values()) == sum(watched(vlm, 1, 1).waits.values()) + 1
    assert any("rand" in line for line in seen.chance)
    assert sum(seen.made.values()) > sum(watched(vlm, 1, 1).made.values())
    with Watch() as watch:
        torch.index_select(torch.ones(3, device=META), 0, torch.tensor([0]))
    assert watch.mixed


def test_the_same_draws_on_every_device() -> None:
    views = {place: torch.full((2, 3, 8, 8), 0.5, device=place) for place in ("cpu", "meta")}
    states = {}
    for place, pictures in views.items():
        generators = [torch.Generator().manual_seed(7)]
        for change in (nd.Shift(), nd.Noise(), nd.Scale(0.9, 1.1), nd.Rotate(5)):
            assert change(pictures, generators, 2).device.type == place
        states[place] = generators[0].get_state()
    assert torch.equal(states["cpu"], states["meta"])
