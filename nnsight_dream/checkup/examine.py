"""A whole checkup: every section in turn, one's failure never another's."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..directions.direction import versions
from ..models import devices
from ..state.calm import calmly
from .cost import cost
from .drawings import TITLE, drawings
from .layers import alignment
from .material import Material
from .numerics import numerics
from .record import activations, family_record, gradient, pixels
from .section import FAIL, UNSURE, Report, Section
from .sinks import sink_tokens
from .tokens import words

if TYPE_CHECKING:
    from ..models.vlm import VLM

#: Sections by the name that `skip` takes: title, and what finds it out.
SECTIONS: dict[str, tuple[str, Callable[[Material], Section]]] = {
    "record": ("Family record", family_record),
    "activations": ("Activations", activations),
    "pixels": ("Pixels", pixels),
    "gradient": ("Gradient", gradient),
    "numerics": ("Numbers", numerics),
    "words": ("Tokens of words", words),
    "layers": ("Words and pictures by layer", alignment),
    "sinks": ("Sink tokens", sink_tokens),
    "cost": ("Memory and time of a step", cost),
    "drawings": (TITLE, drawings),
}


@calmly
def examine(
    vlm: VLM,
    *,
    quick: bool = False,
    layers: Sequence[int | str] = (),
    skip: Iterable[str] = (),
    told: Callable[[str], None] | None = None,
) -> Report:
    """Find out whether a model can be trusted and drawn here; nothing of it is changed.

    vlm      of `nd.load`, with check=False where what is wrong shall be on the report instead of an error
    quick    fewer pictures, words and steps: within a minute on the bundled model
    layers   up to how many are drawn and whose numbers are looked at, from 1; first, middle and last if not given
    skip     names of sections to leave out
    told     is given the title of each section as it begins

    An interrupt ends it with the sections so far. Raises ValueError for a layer or section that is not there.
    """
    arguments.model(vlm)
    left_out = list(skip)
    if wrong := [name for name in left_out if name not in SECTIONS]:
        raise ValueError(f"skip={arguments.shown(wrong[0])}: there is no such section; there are {', '.join(SECTIONS)}")
    material = Material(vlm, quick, tuple(vlm.site(layer).layer for layer in layers))
    sections: list[Section] = []
    interrupted = False
    for name, (title, find) in SECTIONS.items():
        if name in left_out:
            continue
        if told is not None:
            told(title)
        try:
            sections.append(_timed_section(name, title, find, material))
        except KeyboardInterrupt:
            interrupted = True
            break
    return Report(_facts(material, sections), sections, quick, interrupted)


def _timed_section(name: str, title: str, find: Callable[[Material], Section], material: Material) -> Section:
    """A section with the warnings of its making, and its time; an error in it is what it says."""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            section = find(material)
        except (MemoryError, torch.OutOfMemoryError) as error:
            advice = "Free memory, or load fewer layers (up_to_layer=), bfloat16, or checkpoint_tower=True"
            section = Section(name, title, UNSURE, f"Memory ran out: {_first_line(error)}", advice)
        except Exception as error:
            advice = "This section could not be done: look at the words above, and report them with the model's name"
            section = Section(name, title, FAIL, f"{type(error).__name__}: {_first_line(error)}", advice)
    own = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    section.notes = list(dict.fromkeys(own))[:8]
    section.seconds = time.perf_counter() - began
    return section


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no words"
    return text if len(text) < 600 else f"{text[:600]} ..."


def _facts(material: Material, sections: Sequence[Section]) -> dict[str, Any]:
    """What was checked, and on what."""
    vlm = material.vlm
    return {
        "model": str(vlm.id) if not os.path.isabs(str(vlm.id)) else os.path.basename(str(vlm.id)),
        "revision": vlm.revision,
        "family": vlm.family.name,
        "layers": vlm.layers,
        "width": vlm.width,
        "image": f"{vlm.image_size[0]} x {vlm.image_size[1]} pixels, {vlm.grid[0]} x {vlm.grid[1]} tokens",
        "dtype": str(vlm.dtype)[6:],
        "attention": getattr(vlm.config.get_text_config(), "_attn_implementation", None),
        "where": str(vlm.remote) if vlm.remote is not None else _device(vlm.device),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(sum(section.seconds for section in sections)),
    }


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    free = devices.free_bytes(device)
    return f"{torch.cuda.get_device_name(device)}" + (f", {devices.gigabytes(free)} free" if free else "")
