"""The section on cost: memory and time of a step, measured, against the estimate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..engine.canvas import MultiResolution
from ..models import devices
from ..models.estimate import Estimate, estimate
from ..models.rates import GPUS, Rate, cpu_rate, gpu_rate
from ..synthesis.settings import Settings
from ..synthesis.timing import seconds_a_step
from .section import PASS, UNSURE, Section

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .material import Material

#: How many times the estimate a measured number may be; on a CPU time depends on what else the machine does.
MEMORY, TIME = 1.25, 5.0

#: Bytes by which memory may be more beside: what libraries and allocators keep.
SLACK = 500_000_000


def cost(given: Material) -> Section:
    """A step of one view at the last of the layers that are drawn."""
    vlm, layer, canvas = given.vlm, given.layers[-1], max(given.vlm.image_size)
    title = "Memory and time of a step"
    kind = "cuda" if vlm.device.type == "cuda" else "cpu"
    eager = getattr(vlm.config.get_text_config(), "_attn_implementation", "") == "eager"
    options: dict[str, Any] = {"processor": vlm.processor, "family": vlm.family}
    options |= {"attention": "eager" if eager else "sdpa", "checkpoint_tower": vlm.checkpoint_tower}
    options |= {"image_size": vlm.image_size if vlm.own_size else None}
    try:
        step = estimate(vlm.config, layer, canvas=canvas, dtype=vlm.dtype, device=kind, **options)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
        return Section("cost", title, UNSURE, f"It cannot be estimated: {error}", "Measure a step of your own")
    row: dict[str, Any] = {
        "layer": layer,
        "TFLOP": sum(step.flops.values()) / 1e12,
        "weights": devices.gigabytes(sum(step.weights.values())),
        "step": devices.gigabytes(step.step_bytes),
    }
    text = f"A step of one view at layer {layer} is estimated at {row['step']} beside {row['weights']} of weights"
    if given.away or not vlm.passes_gradient:
        why = f"the weights are on {vlm.remote}" if given.away else "no gradient passes"
        return Section("cost", title, UNSURE, f"{text}; not measured: {why}", "", [row])
    seconds, peak = _measured(vlm, layer, canvas)
    rate, expected = _rate(vlm), 0.0
    if rate is not None:
        expected = row["expected seconds"] = step.seconds(rate)
    row |= {"seconds": seconds, "measured step": None if peak is None else devices.gigabytes(peak)}
    return _section(text, title, step, row, seconds, peak, expected)


def _section(
    text: str, title: str, step: Estimate, row: dict[str, Any], seconds: float | None, peak: int | None, expected: float
) -> Section:
    """The section of what was measured."""
    if seconds is None:
        advice = "Time it on an idle machine, or on a GPU: a step takes too long, or too unevenly, to be timed here"
        return Section("cost", title, UNSURE, f"{text}; its time was not told", advice, [row])
    text += f"; it takes {seconds:.2g} s"
    text += f", {expected:.2g} s by the estimate" if expected else ""
    if peak is not None and (step.device == "cuda" or peak > step.step_bytes / 2):
        text += f", and {row['measured step']} of memory"
    if peak is not None and peak > MEMORY * step.step_bytes + SLACK:
        advice = "The estimate is too low here: report this line; lower at_once= or use checkpoint_tower=True"
        return Section("cost", title, UNSURE, text, advice, [row])
    if step.device == "cuda" and expected and seconds > TIME * expected:
        advice = "Slower than this GPU should be: other programs on it, a power limit, eager attention, or small passes"
        return Section("cost", title, UNSURE, text, advice, [row])
    return Section("cost", title, PASS, text, "", [row])


def _measured(vlm: VLM, layer: int, canvas: int) -> tuple[float | None, int | None]:
    """Seconds of a step, and the most bytes that it took beside the weights, where it can be read (CUDA, Linux)."""
    settings = Settings(batch=1, at_once=1, canvas=MultiResolution(canvas), centre=torch.zeros(vlm.width))
    if vlm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(vlm.device)
        before = torch.cuda.memory_allocated(vlm.device)
        seconds = seconds_a_step(vlm, layer, settings)
        return seconds, torch.cuda.max_memory_allocated(vlm.device) - before
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _resident(status, "VmRSS")
    except OSError:  # not Linux, or not allowed
        return seconds_a_step(vlm, layer, settings), None
    seconds = seconds_a_step(vlm, layer, settings)
    return seconds, max(0, _resident(status, "VmHWM") - before)


def _resident(status: Path, line: str) -> int:
    return int(status.read_text(encoding="ascii").split(f"{line}:")[1].split()[0]) * 1024


def _rate(vlm: VLM) -> Rate | None:
    """The machine's rate: this CPU's as measured, a GPU's by its vendor's figures; None for one that is not known."""
    if vlm.device.type == "cpu":
        return cpu_rate(vlm.dtype)
    if vlm.device.type == "cuda":
        name = torch.cuda.get_device_name(vlm.device)
        gpu_name = next((gpu for gpu in GPUS if gpu in name), None)
        return None if gpu_name is None else gpu_rate(gpu_name, str(vlm.dtype)[6:])
    return None
