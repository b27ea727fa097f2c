"""What a climb will take, in a line before it starts: time, memory and device; what does not fit, and what would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from ..models import devices
from ..models.estimate import Estimate, estimate
from ..models.rates import GPUS, gpu_rate
from .ascent import batches
from .canvases import canvas_for
from .progress import in_words
from .request import site_of
from .timing import least_seconds, seconds_a_step

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .request import Order
    from .settings import Settings


T = TypeVar("T")


#: Weights of fewer bytes leave room on any machine: nothing is counted.
SMALL = 1_000_000_000


def forecast(vlm: VLM, order: Order) -> str:
    """A line about what `synthesize` will take, or two where a step does not fit; a second or two to work out.

    Time comes of a few steps that are run, or of a GPU's peak rates where one step takes longer than that; memory of
    the model's own code run on shapes alone, for models of a gigabyte and more.
    """
    sites = [site_of(vlm, aim) for aim, _ in order.jobs]
    layers = sorted({site.layer for site in sites})
    count = "1 picture" if len(sites) == 1 else f"{len(sites)} pictures"
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    begun = f"{count} at {where}"
    if vlm.remote is not None and vlm.remote.away:
        return f"{begun}, on {vlm.remote}"
    places, settings = max(batches(order.settings), key=lambda group: len(group[0]) * group[1].batch)
    site = max((sites[place] for place in places), key=lambda site: site.layer)
    counted = _counted(vlm, site, settings, min(settings.at_once, settings.batch * len(places)))
    views = sum(chosen.steps * chosen.batch * len(some) for some, chosen in batches(order.settings))
    seconds = _seconds_a_view(vlm, site, settings, counted)
    took = "" if seconds is None else f": about {in_words(seconds * views)}"
    free = devices.free_bytes(vlm.device)
    if counted is None or free is None:
        return f"{begun}{took} on {vlm.device}"
    memory = f"{devices.gigabytes(counted.step_bytes)} of memory beside the weights ({devices.gigabytes(free)} free)"
    line = f"{begun}{took}{',' if took else ':'} {memory} on {vlm.device}"
    if counted.step_bytes <= free:
        return line
    ways = "; ".join(_fitting(vlm, site, settings, counted, free)) or "a smaller image_size="
    return f"{line}\nthat does not fit. What would: {ways}"


#: Results by model and key: a second call in a notebook does not wait for them again.
_KNOWN: WeakKeyDictionary[VLM, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()


def _once(vlm: VLM, key: tuple[Any, ...], find: Callable[[], T]) -> T:
    results = _KNOWN.setdefault(vlm, {})
    if key not in results:
        results[key] = find()
    result: T = results[key]
    return result


def _counted(vlm: VLM, site: Site, settings: Settings, views: int, tower: bool | None = None) -> Estimate | None:
    """The estimate of a step, of models that are large enough to ask; None where it is not known."""
    if sum(p.numel() * p.element_size() for p in vlm.hf.parameters()) < SMALL:
        return None
    tower = vlm.checkpoint_tower if tower is None else tower
    key = ("memory", site, canvas_for(vlm, settings.canvas).size, views, tower, vlm.image_size, vlm.device, vlm.dtype)
    return _once(vlm, key, lambda: _count(vlm, site, settings, views, tower))


def _count(vlm: VLM, site: Site, settings: Settings, views: int, tower: bool) -> Estimate | None:
    try:
        return estimate(
            vlm.config, site.layer, batch=views, canvas=canvas_for(vlm, settings.canvas).size, dtype=vlm.dtype,
            device="cpu" if vlm.device.type == "cpu" else "cuda", image_size=vlm.own_size,
            checkpoint_tower=tower,
            processor=vlm.processor, family=vlm.family,
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError):  # of which nothing is known
        return None


def _seconds_a_view(vlm: VLM, site: Site, settings: Settings, counted: Estimate | None) -> float | None:
    """Seconds that a view of a picture takes in a step."""
    free = devices.free_bytes(vlm.device)
    if counted is not None and free is not None and counted.step_bytes > free:
        return None
    try:
        single = dataclasses.replace(settings, batch=1, at_once=1)
        if least_seconds(vlm, site.layer) < 0.3:
            key = ("time", site, repr(single), vlm.image_size, vlm.device, vlm.dtype, torch.get_num_threads())
            if (seconds := _once(vlm, key, lambda: seconds_a_step(vlm, site, single))) is not None:
                return seconds
    except Exception:  # a forecast is no reason to fail: the climb itself says what is wrong
        return None
    name = torch.cuda.get_device_name(vlm.device) if vlm.device.type == "cuda" else ""
    for gpu in GPUS:
        if gpu in name and counted is not None:
            return counted.seconds(gpu_rate(gpu, counted.dtype)) / counted.batch
    return None


def _fitting(vlm: VLM, site: Site, settings: Settings, counted: Estimate, free: int) -> Iterator[str]:
    """What takes less, by argument of `load` and `synthesize`, and as an option of the command line."""
    if vlm.tower_layers and not vlm.checkpoint_tower:
        less: Any = _counted(vlm, site, settings, counted.batch, tower=True)
        if less is not None and less.step_bytes <= free:
            yield f"nd.load(..., checkpoint_tower=True) or --checkpoint-tower, {devices.gigabytes(less.step_bytes)}"
    views = counted.batch // 2
    while views >= 1:
        less = _counted(vlm, site, settings, views)
        if less is not None and less.step_bytes <= free:
            yield f"at_once={views} or --at-once {views}, {devices.gigabytes(less.step_bytes)}, in more passes"
            return
        views //= 2
