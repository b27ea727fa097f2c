"""What a step takes: operations, memory, time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import whole
from ..engine.augment import Noise, Shift
from ..engine.canvas import MultiResolution
from ..engine.optimise import Climb, climb, optimiser_of
from ..engine.pooling import Attention, cosine
from ..engine.read import reader
from ..engine.terms import direction_term
from .dry_run import DryRun
from .image_size import image_size_of
from .rates import GPU_USE, GPUS, Rate, gpu_rate
from .reading import reading
from .shapes import without_numbers

if TYPE_CHECKING:
    from .family import Family
    from .sites import Site
    from .vlm import VLM


#: Bytes of a process beside weights and tensors: 400 MB once torch, transformers and nnsight are imported, 85 MB more
#: when all has run once (Linux, x86-64, measured).
PROCESS = 485_000_000


#: Bytes that CUDA takes for itself on a GPU, with its libraries' kernels and workspace. Assumed, not measured.
CUDA_CONTEXT = 800_000_000


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
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        named = {"kept": "kept_bytes", "weights": "weights_bytes", "workspace": "workspace_bytes"}
        named |= {"moved": "moved_bytes", "canvas": "canvas_pixels", "image_size": "image_pixels"}
        plain = {named.get(k, k): dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        return {**plain, "image_tokens": self.image_tokens, "memory_bytes": self.memory}


def story(cpu: Estimate, gpu: Estimate, seconds: str = "") -> dict[str, Any]:
    """Two estimates of one step, on the CPU and on a GPU, in words.

    seconds   what is known of a step's time on this machine, in words; from shapes alone it cannot be told
    """
    image, grid = gpu.image_size, gpu.grid
    kept = sum(gpu.kept.values())
    facts: dict[str, Any] = {
        "step": f"layer {gpu.layer}, batch {gpu.batch}, canvas of {gpu.canvas} x {gpu.canvas} pixels",
        "sequence": f"{grid[0]} x {grid[1]} image tokens of {gpu.prompt_tokens}, from {image[0]} x {image[1]} pixels",
        "TFLOP": {name: f"{n / 1e12:.4g}" for name, n in (*gpu.flops.items(), ("in all", sum(gpu.flops.values())))},
    }
    for name, step in (("CPU memory", cpu), ("GPU memory", gpu)):
        parts = {**{f"{k} weights": v for k, v in step.weights.items() if v}, "canvas": step.canvas_bytes}
        parts |= {f"{k} activations": v for k, v in step.kept.items() if v > 0} | {"workspace": step.workspace}
        parts["process" if step.device == "cpu" else "CUDA (assumed)"] = step.own_bytes
        parts["in all"] = step.memory
        facts[f"{name}, {step.dtype}"] = {part: f"{n / 1e9:.3f} GB" for part, n in parts.items()}
    if not gpu.checkpoint_tower and gpu.kept["tower"] > kept / 2 > 1e9:
        facts["to save"] = "checkpoint_tower=True keeps a small part of the tower's"
    if seconds:
        facts["seconds"] = seconds
    least = {name: sum(gpu.flops.values()) / gpu_rate(name, gpu.dtype).flops * GPU_USE[0] for name in GPUS}
    facts["of GPUs"] = "none was seen; in seconds, at the vendor's peak, a step takes at least " + ", ".join(
        f"{value:.2g} ({name})" for name, value in least.items()
    )
    if gpu.assumed:
        facts["assumed"] = "; ".join(gpu.assumed)
    return facts


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

    The module is built without numbers and a step of an ascent is done with it, up to the layer, on shapes alone: every
    family that can be climbed is counted by its own code. Raises ValueError for an argument that is not allowed and
    where a config does not tell enough.

    >>> from nnsight_dream.models.estimate import estimate
    >>> step = estimate("demo", 1)
    >>> step.image_tokens, step.flops["tower"] > step.flops["decoder"]
    (64, True)
    """
    batch, canvas = whole(batch, "batch", 1), whole(canvas, "canvas", 1)
    if device not in ("cpu", "cuda") or attention not in ("sdpa", "eager"):
        raise ValueError(
            f"device={device!r}, attention={attention!r}: allowed are 'cpu' or 'cuda', and 'sdpa' or 'eager'"
        )
    vlm, assumed = without_numbers(x, dtype, device, attention, processor, family)
    if image_size is not None:
        vlm.pixels = dataclasses.replace(vlm.pixels, size=image_size_of(vlm, image_size))
    if checkpoint_tower and not vlm.tower_layers:
        raise ValueError(
            f"checkpoint_tower=True: the tower of {vlm.id} ({vlm.family.name}) cannot be computed anew; leave it out"
        )
    vlm.checkpoint_tower = checkpoint_tower
    return _counted(vlm, vlm.site(layer), batch, canvas, device, attention, assumed)


def _counted(
    vlm: VLM, site: Site, batch: int, canvas: int, device: str, attention: str, assumed: list[str]
) -> Estimate:
    """The estimate of a step, of which every operation is done on shapes."""
    weights, parameters = _weights(vlm, site.layer)
    parts = {"tower": vlm.family.tower, "projector": vlm.family.projector}
    parts["decoder"] = vlm.family.layers.rpartition(".")[0]
    modules = {name: vlm.hf.get_submodule(path) for name, path in parts.items() if path}
    run = DryRun(modules, [*vlm.hf.parameters(), *vlm.hf.buffers()], device)
    held = _dry_step(vlm, site, run, batch, canvas)
    after_forward = run.after_forward or 0
    kept = {name: run.kept.get(name, 0) for name in (*parts, "other")}
    kept["other"] = after_forward - held - sum(kept[name] for name in parts)
    return Estimate(
        model=vlm.id,
        family=vlm.family.name,
        layer=site.layer,
        batch=batch,
        canvas=canvas,
        image_size=vlm.image_size,
        grid=vlm.grid,
        prompt_tokens=len(vlm.image_prompt.ids),
        dtype=str(vlm.dtype)[6:],
        device=device,
        attention=attention,
        checkpoint_tower=vlm.checkpoint_tower,
        parameters=parameters,
        flops={name: run.flops.get(name, 0) for name in (*parts, "other")},
        weights=weights,
        kept=kept,
        canvas_bytes=3 * held,
        workspace=run.peak - after_forward,
        moved=sum(run.moved.values()),
        assumed=tuple(assumed),
    )


def _dry_step(vlm: VLM, site: Site, run: DryRun, batch: int, canvas: int) -> int:
    """A step of an ascent, the engine's own, on shapes; returns the bytes of the canvas's parts."""
    drawn, generators = MultiResolution(canvas), [torch.Generator()]
    plan = Climb(steps=1, batch=batch, rate=0.1, clip=1.0)
    vlm.family = dataclasses.replace(vlm.family, states=run.ending(vlm.family.states))  # called as a pass stops
    if vlm.family.surrogate is not None:
        vlm.straight_through = 1.0
    with run.counting(), vlm.quiet():
        read, _ = reader(vlm.model, reading(vlm, [site]))
        parts = [p.requires_grad_(True) for p in drawn.start(1, generators, torch.device("meta"))]
        zeros = torch.zeros(1, vlm.width_at(site), device="meta")
        terms = [direction_term(site, zeros, zeros, Attention(), cosine)]
        optimiser = optimiser_of(plan, parts)
        run.restart()  # masks are made once for all steps
        _, interrupted = climb(
            read, drawn, (Shift(), Noise(0.2)), terms, plan, generators, parts, optimiser,
            range(plan.steps), vlm.grid, "no gradient comes back",
        )  # fmt: skip
    if interrupted:
        raise KeyboardInterrupt
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
