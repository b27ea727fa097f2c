"""What a step takes: operations, memory, time."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import whole
from ..engine.augment import Noise, Shift
from ..engine.canvas import MultiResolution
from ..engine.objective import group
from ..engine.optimise import Step, clipped
from ..engine.pooling import Attention, cosine
from . import hub
from .dry_run import DryRun
from .families import family_of, known_families
from .image_size import image_size_of
from .parts import Parts, _processor_at, _wrap
from .prompt import ImagePrompt
from .reading import _at, _picture_inputs, _pixel_inputs, _run

if TYPE_CHECKING:
    from .family import Family
    from .sites import Site
    from .vlm import VLM


#: Bytes of a process beside weights and tensors: 400 MB once torch, transformers and nnsight are imported, 85 MB more
#: when all has run once (Linux, x86-64, measured).
PROCESS = 485_000_000


#: Bytes that CUDA takes for itself on a GPU, with its libraries' kernels and workspace. Assumed, not measured.
CUDA_CONTEXT = 800_000_000


OPENING = 8  # tokens before a picture where no tokenizer is there to tell: Gemma 3's template writes 6


#: Vendors' dense peaks: 10^12 operations a second in bfloat16 and in float32, 10^9 bytes a second of memory.
GPUS: dict[str, tuple[float, float, float]] = {
    "A100": (312, 19.5, 2039),
    "H100": (989, 67, 3350),
    "L40S": (362, 91.6, 864),
    "RTX 4090": (165, 82.6, 1008),
}


#: The part of these peaks that is assumed to be reached, in products and in moving bytes. Nothing was seen on a GPU.
GPU_USE = (0.4, 0.7)


@dataclass(frozen=True)
class Rate:
    """How fast a machine is: floating-point operations a second in matrix products, bytes a second in all else."""

    name: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Estimate:
    """What one step of an ascent takes. Memory in bytes, work in floating-point operations (2 for a multiply-add).

    model, family, layer   what is climbed; layers count from 1
    batch          pictures in the forward pass: a step's augmented views
    canvas         side in pixels of the picture that is drawn; `image_size` (height, width) as the model sees it
    grid           rows and columns of image tokens; `prompt_tokens` all tokens of the sequence, these included
    dtype, device, attention   "bfloat16", "cpu" or "cuda", "sdpa" or "eager": as it would be run
    parameters     by part, and "unused": those of later layers, final norm and head. Parts are tower, projector,
                   embedding, blocks (up to the layer) and other
    flops          by part, forward and backward to the picture, with nothing after the layer: tower, projector,
                   decoder, other (canvas, augmentation, objective)
    weights        bytes by part, of what the layer needs
    kept           bytes by part that are kept from the forward pass for the backward pass
    canvas_bytes   the canvas's tensors with their gradients and momentum
    workspace      the most bytes above weights, canvas and what is kept, at any one time
    moved          bytes that operations other than products read and write
    assumed        what was not known and what was taken instead
    """

    model: str
    family: str
    layer: int
    batch: int
    canvas: int
    image_size: tuple[int, int]
    grid: tuple[int, int]
    prompt_tokens: int
    dtype: str
    device: str
    attention: str
    checkpoint_tower: bool
    parameters: Mapping[str, int]
    flops: Mapping[str, int]
    weights: Mapping[str, int]
    kept: Mapping[str, int]
    canvas_bytes: int
    workspace: int
    moved: int
    assumed: tuple[str, ...] = field(default=())

    @property
    def image_tokens(self) -> int:
        """How many tokens a picture becomes."""
        return self.grid[0] * self.grid[1]

    @property
    def step_bytes(self) -> int:
        """The most bytes at one time beside the weights."""
        return self.canvas_bytes + sum(self.kept.values()) + self.workspace

    @property
    def memory(self) -> int:
        """The most bytes of the device's memory at one time, with what the process or CUDA takes for itself.

        What an allocator keeps of memory that was freed is not in it. On Linux glibc's heap may keep a quarter of a
        step's bytes; MALLOC_MMAP_THRESHOLD_=65536 in the environment sends them back at once.
        """
        return sum(self.weights.values()) + self.step_bytes + self.own_bytes

    @property
    def own_bytes(self) -> int:
        """What the process, or CUDA, takes for itself."""
        return PROCESS if self.device == "cpu" else CUDA_CONTEXT

    def seconds(self, rate: Rate) -> float:
        """Time of a step on a machine of this rate: products at its one speed, and all else at the other."""
        return sum(self.flops.values()) / rate.flops + self.moved / rate.bytes

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON, units in the names."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        named = {"kept": "kept_bytes", "weights": "weights_bytes", "workspace": "workspace_bytes"}
        named |= {"moved": "moved_bytes", "canvas": "canvas_pixels", "image_size": "image_pixels"}
        plain = {named.get(k, k): dict(v) if isinstance(v, Mapping) else v for k, v in told.items()}
        return {**plain, "image_tokens": self.image_tokens, "memory_bytes": self.memory}


def story(cpu: Estimate, gpu: Estimate, seconds: str = "") -> dict[str, Any]:
    """Two estimates of one step, on the CPU and on a GPU, in words.

    seconds   what is known of a step's time on this machine, in words; from shapes alone it cannot be told
    """
    image, grid = gpu.image_size, gpu.grid
    kept = sum(gpu.kept.values())
    found: dict[str, Any] = {
        "step": f"layer {gpu.layer}, batch {gpu.batch}, canvas of {gpu.canvas} x {gpu.canvas} pixels",
        "sequence": f"{grid[0]} x {grid[1]} image tokens of {gpu.prompt_tokens}, from {image[0]} x {image[1]} pixels",
        "TFLOP": {name: f"{n / 1e12:.4g}" for name, n in (*gpu.flops.items(), ("in all", sum(gpu.flops.values())))},
    }
    for name, one in (("CPU memory", cpu), ("GPU memory", gpu)):
        parts = {**{f"{k} weights": v for k, v in one.weights.items() if v}, "canvas": one.canvas_bytes}
        parts |= {f"{k} kept": v for k, v in one.kept.items() if v > 0} | {"workspace": one.workspace}
        parts["process" if one.device == "cpu" else "CUDA (assumed)"] = one.own_bytes
        parts["in all"] = one.memory
        found[f"{name}, {one.dtype}"] = {part: f"{n / 1e9:.3f} GB" for part, n in parts.items()}
    if not gpu.checkpoint_tower and gpu.kept["tower"] > kept / 2 > 1e9:
        found["to save"] = "checkpoint_tower=True keeps a small part of the tower's"
    if seconds:
        found["seconds"] = seconds
    least = {name: sum(gpu.flops.values()) / gpu_rate(name, gpu.dtype).flops * GPU_USE[0] for name in GPUS}
    found["of GPUs"] = "none was seen; in seconds, at the vendor's peak, a step takes at least " + ", ".join(
        f"{value:.2g} ({name})" for name, value in least.items()
    )
    if gpu.assumed:
        found["assumed"] = "; ".join(gpu.assumed)
    return found


def gpu_rate(name: str, dtype: str) -> Rate:
    """The assumed rate of a GPU of the table. Raises ValueError for one that is not in it."""
    if name not in GPUS:
        raise ValueError(f"no GPU {name!r} in the table; there are {', '.join(GPUS)}")
    half, single, bandwidth = GPUS[name]
    peak = single if dtype == "float32" else half
    return Rate(name, peak * 1e12 * GPU_USE[0], bandwidth * 1e9 * GPU_USE[1])


def cpu_rate(dtype: torch.dtype = torch.float32) -> Rate:
    """This machine's rate, measured within a second with as many threads as torch has now: a product of the shape of a
    tower's, and a sum of two tensors."""
    a, b = torch.ones(512, 1152, dtype=dtype), torch.ones(1152, 1152, dtype=dtype)
    c = torch.ones(2**22, dtype=dtype)
    product, summed = _best(lambda: a @ b), _best(lambda: c + c)
    return Rate(
        f"this CPU, {torch.get_num_threads()} thread(s)",
        2 * a.numel() * b.shape[1] / product,
        3 * c.numel() * c.element_size() / summed,
    )


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the quickest of a few runs by this process's own clock, as if no other program ran."""
    spent = []
    for _ in range(5):
        began = time.process_time()
        run()
        spent.append((time.process_time() - began) / torch.get_num_threads())
    return min(spent)


def estimate(
    x: Any,
    layer: int | str = 1,
    *,
    batch: int = 1,
    canvas: int = 448,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    attention: str = "sdpa",
    image_size: int | tuple[int, int] | None = None,
    checkpoint_tower: bool = False,
    processor: Any = None,
    family: Family | None = None,
) -> Estimate:
    """Estimate a step of an ascent of a model's layer; no weight is read, only its config (and processor, if there).

    x            "demo", a hub id, a folder, or a Hugging Face config
    layer        a layer's number from 1, or a site's name
    batch        augmented views of the picture in a step; `canvas` the side in pixels of the picture
    dtype        of the weights; as `load` would choose it if not given
    device       "cpu" or "cuda": whose attention kernels are counted on
    attention    "sdpa" or "eager" (whole matrices of attention weights are then kept)
    image_size, checkpoint_tower, processor, family   as for `load`

    The module is built without numbers and a step of `ascend` is done with it, up to the layer, on shapes alone: every
    family that can be climbed is counted by its own code. Raises ValueError for an argument that is not allowed and
    where a config does not tell enough.

    >>> from nnsight_dream.models.estimate import estimate
    >>> found = estimate("demo", 1)
    >>> found.image_tokens, found.flops["tower"] > found.flops["decoder"]
    (64, True)
    """
    for name, value in (("batch", batch), ("canvas", canvas)):
        whole(value, name, 1)
    batch, canvas = int(batch), int(canvas)
    if device not in ("cpu", "cuda") or attention not in ("sdpa", "eager"):
        raise ValueError(
            f"device={device!r}, attention={attention!r}: allowed are 'cpu' or 'cuda', and 'sdpa' or 'eager'"
        )
    vlm, assumed = _empty(x, dtype, device, attention, processor, family)
    if image_size is not None:
        vlm.pixels = dataclasses.replace(vlm.pixels, size=image_size_of(vlm, image_size))
    if vlm.family.surrogate is not None:
        vlm.straight_through = 1.0
    if checkpoint_tower and not vlm.tower_layers:
        raise ValueError(f"checkpoint_tower=True: the tower of {vlm.id} ({vlm.family.name}) cannot be computed anew")
    vlm.checkpoint_tower = checkpoint_tower
    site = vlm.site(layer)
    layer = site.layer
    weights, parameters = _weights(vlm, layer)
    parts = {"tower": vlm.family.tower, "projector": vlm.family.projector}
    parts["decoder"] = vlm.family.layers.rpartition(".")[0]
    modules = {name: vlm.hf.get_submodule(path) for name, path in parts.items() if path}
    run = DryRun(modules, [*vlm.hf.parameters(), *vlm.hf.buffers()], device)
    held = _dry_step(vlm, site, run, batch, canvas)
    kept = {name: run.kept.get(name, 0) for name in (*parts, "other")}
    kept["other"] = run.after_forward - held - sum(kept[name] for name in parts)
    return Estimate(
        model=vlm.id,
        family=vlm.family.name,
        layer=layer,
        batch=batch,
        canvas=canvas,
        image_size=vlm.image_size,
        grid=vlm.grid,
        prompt_tokens=len(vlm.image_prompt.ids),
        dtype=str(vlm.dtype)[6:],
        device=device,
        attention=attention,
        checkpoint_tower=checkpoint_tower,
        parameters=parameters,
        flops={name: run.flops.get(name, 0) for name in (*parts, "other")},
        weights=weights,
        kept=kept,
        canvas_bytes=3 * held,
        workspace=run.peak - run.after_forward,
        moved=sum(run.moved.values()),
        assumed=tuple(assumed),
    )


def _dry_step(vlm: VLM, site: Site, run: DryRun, batch: int, canvas: int) -> int:
    """A step as `ascend` does it, on shapes; returns the bytes of the canvas's parts."""
    drawn, generator = MultiResolution(canvas), [torch.Generator()]
    with run.counting(), vlm.quiet():
        constants = _picture_inputs(vlm, batch)
        parts = [p.requires_grad_(True) for p in drawn.start(1, generator, torch.device("meta"))]
        zeros = torch.zeros(1, vlm.width_at(site), device="meta")
        objectives = group([(site, zeros[0], zeros[0])], Attention(), cosine)
        optimiser = torch.optim.SGD(parts, lr=0.1, momentum=0.9)
        run.restart()  # masks are made once for all steps
        with torch.enable_grad():
            pictures = drawn.render(parts)
            views = pictures.repeat_interleave(batch, 0)
            for change in (Shift(), Noise(0.2)):
                views = change(views, generator, batch)
            found = _run(vlm, [site], {**constants, **_pixel_inputs(vlm, views)})
            run.stopped()
            patches = {site: _at(vlm, site, found[site]).float()}
            now = Step(pictures, views, patches, batch, vlm.grid, 0.0)
            score = torch.stack([objective(now) for objective in objectives]).sum(0)
            run.after_forward = run.live
            gradients = torch.autograd.grad(-score.sum(), parts)
        for part, gradient in zip(parts, clipped(gradients, 1.0)[0], strict=True):
            part.grad = gradient
        optimiser.step()
    return sum(p.untyped_storage().nbytes() for p in parts)


def _weights(vlm: VLM, layer: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part of the weights that the layer needs, and parameters by part, the unused ones too."""
    family = vlm.family
    stack = family.layers.rpartition(".")[0]
    sizes = dict.fromkeys(("tower", "projector", "embedding", "blocks", "other", "unused"), 0)
    counts = dict(sizes)
    whole = bool(getattr(vlm.config.get_text_config(), "hidden_size_per_layer_input", 0))  # loaded whole, see `load`
    for name, weight in vlm.hf.named_parameters():  # tied ones once
        if name.startswith(f"{family.layers}."):
            number = int(name[len(family.layers) + 1 :].split(".")[0])
            part = "blocks" if whole or number < layer else "unused"
        elif family.projector and name.startswith(f"{family.projector}."):
            part = "projector"
        elif family.tower and name.startswith(f"{family.tower}."):
            part = "tower"
        elif name.startswith(f"{stack}.norm.") or not name.startswith(f"{family.root}."):
            part = "unused"
        else:
            part = "embedding" if name.startswith(f"{stack}.embed") else "other"
        counts[part] += weight.numel()
        sizes[part] += weight.numel() * weight.element_size()
    del sizes["unused"]
    return sizes, counts


def _empty(
    x: Any, dtype: torch.dtype | None, device: str, attention: str, processor: Any, family: Family | None
) -> tuple[VLM, list[str]]:
    """The model without numbers, and what was assumed of it."""
    from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

    assumed: list[str] = []
    if isinstance(x, (str, Path)):
        name = str(x)
        with hub.door(x) as place:
            config = AutoConfig.from_pretrained(place)
            family = family or family_of(config)
            if processor is None and family is not None:
                processor = _processor_if_there(place, family, assumed)
    elif isinstance(x, PretrainedConfig):
        name = str(x.name_or_path) or "a config"
        config = copy.deepcopy(x)
        family = family or family_of(config)
    else:
        raise TypeError(
            f"cannot estimate a {type(x).__name__}: give 'demo', a hub id, a folder or a Hugging Face config"
        )
    if family is None:
        raise ValueError(
            f"no family record for model_type {config.model_type!r}; give family=, or a model of a known family: "
            f"{known_families()}"
        )
    if dtype is None:
        own = getattr(config, "dtype", None) or config.get_text_config().dtype
        dtype = torch.bfloat16 if device == "cuda" else own or torch.float32
    with torch.device("meta"):
        hf = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    if processor is not None:
        return _wrap(None, hf, processor, family, name), assumed
    try:
        vlm = _wrap(None, hf, Parts(object(), _numbers(config)), family, name)
        vlm.memo.assumed_prompt = _prompt(vlm)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the config of {name} does not tell how {family.name} sees pictures ({error}); pass processor=, or a "
            "folder with its processor's files"
        ) from error
    assumed.append(f"pictures of {vlm.image_size[0]} x {vlm.image_size[1]} pixels, by the config")
    assumed.append(f"{OPENING} tokens before the picture")
    return vlm, assumed


def _processor_if_there(place: str, family: Family, assumed: list[str]) -> Any:
    """A checkpoint's processor, or None, which is noted."""
    try:
        return _processor_at(place, family)
    except (OSError, ValueError, ImportError) as error:
        if hub.foreign(error):
            raise
        assumed.append(f"no processor found ({str(error).splitlines()[0][:80]})")
        return None


def _numbers(config: Any) -> Any:
    """What families ask of an image processor, as far as a config tells it."""
    vision = config.vision_config
    found: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255, "resample": 2, "do_normalize": True}
    found |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": getattr(vision, "patch_size", None)}
    if getattr(vision, "spatial_merge_size", None):
        patch, merge = vision.patch_size, vision.spatial_merge_size
        found |= {"merge_size": merge, "temporal_patch_size": vision.temporal_patch_size, "size": {}}
        found["get_number_of_image_patches"] = lambda h, w: h // (patch * merge) * (w // (patch * merge)) * merge**2
    else:
        side = vision.image_size
        side = side if isinstance(side, int) else side[0]
        found |= {"size": {"height": side, "width": side}, "max_image_size": {"longest_edge": side}}
    return SimpleNamespace(**found)


def _prompt(vlm: VLM) -> ImagePrompt:
    """A prompt of as many tokens as a picture's has, about."""
    rows, cols = vlm.grid
    image = vlm.config.image_token_id
    row = [image] * cols + [1] * bool(vlm.family.between)
    ids = torch.tensor([1] * OPENING + row * rows)
    if vlm.family.between:
        ids = ids[:-1]
    return ImagePrompt(ids, (ids == image).nonzero().flatten(), vlm.family.extra(ids[None], image), "")
