"""Checks of pictures, canvas parts and generators; see `engine.checks`."""

import torch
from torch import Tensor


def check_generators(who: str, jobs: int, generators: list[torch.Generator]) -> None:
    """Raise ValueError unless there is one generator on the CPU for each job."""
    mend = f"mend: `[torch.Generator().manual_seed(seed) for seed in range({max(1, jobs)})]`"
    if jobs < 1 or len(generators) != jobs:
        raise ValueError(f"{who}: {len(generators)} generators given for {jobs} jobs; allowed is one each; {mend}")
    for generator in generators:
        if generator.device.type != "cpu":
            raise ValueError(f"{who}: a generator on {generator.device} given; allowed are those on the CPU; {mend}")


def check_parts(who: str, parts: list[Tensor], shapes: list[tuple[int, ...]]) -> None:
    """Raise ValueError unless parts have the shapes (jobs, *shape) of a canvas's."""
    given = [tuple(part.shape) for part in parts]
    jobs = given[0][0] if given and given[0] else 0
    if jobs < 1 or given != [(jobs, *shape) for shape in shapes]:
        allowed = ", ".join(f"(jobs, {', '.join(map(str, shape))})" for shape in shapes)
        raise ValueError(
            f"{who}: parts of shapes {given} given; allowed are {allowed}; mend: take those of the "
            f"same canvas, `canvas.start(1, [torch.Generator()])`"
        )


def check_pictures(who: str, picture: Tensor, size: int | None) -> Tensor:
    """The picture or pictures as (n, 3, H, W) float32, or an error that says what is wrong.

    Raises ValueError for another shape, size, type or range.
    """
    if not isinstance(picture, Tensor) or not picture.is_floating_point():
        kind = picture.dtype if isinstance(picture, Tensor) else type(picture).__name__
        mend = "; mend: `torch.as_tensor(picture).float() / 255`"
        raise ValueError(f"{who}: a picture of {kind} given; allowed are floating-point tensors in [0, 1]{mend}")
    picture = picture.detach()
    shape = tuple(picture.shape)
    if len(shape) not in (3, 4) or shape[-3] != 3 or 0 in shape:
        mend = "`picture.movedim(-1, -3)`" if shape[-1:] == (3,) else "`torch.stack([red, green, blue], dim=-3)`"
        raise ValueError(f"{who}: shape {shape} given; allowed are (3, H, W) and (n, 3, H, W); mend: {mend}")
    if size is not None and shape[-2:] != (size, size):
        batch = "picture" if len(shape) == 4 else "picture[None]"
        raise ValueError(
            f"{who}: a picture of {shape[-2]} x {shape[-1]} given; allowed is the canvas's size, {size} x {size}; "
            f'mend: `torch.nn.functional.interpolate({batch}, size=({size}, {size}), mode="bilinear", antialias=True)`'
        )
    if not bool(picture.isfinite().all()):
        count = int((~picture.isfinite()).sum())
        raise ValueError(
            f"{who}: {count} values that are not finite given; allowed are values in [0, 1]; mend: "
            f"`picture.nan_to_num(nan=0.5, posinf=1.0, neginf=0.0)`"
        )
    low, high = float(picture.min()), float(picture.max())
    if low < 0 or high > 1:
        mend = "`picture / 255`" if low >= 0 and 2 < high <= 255 else "`picture.clamp(0, 1)`"
        raise ValueError(f"{who}: values from {low:g} to {high:g} given; allowed is [0, 1]; mend: {mend}")
    return picture.reshape(-1, *shape[-3:]).to(torch.float32)


def check_views(who: str, pictures: Tensor, generators: list[torch.Generator], batch: int) -> None:
    """Raise ValueError unless pictures (jobs * batch, 3, H, W) are floats and have one generator on the CPU a job."""
    shape = tuple(pictures.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        mend = "`pictures[None]`" if len(shape) == 3 and shape[0] == 3 else "`torch.stack(list_of_pictures)`"
        raise ValueError(
            f"{who}: pictures of shape {shape} given; allowed is (jobs * batch, 3, H, W), none of them 0; mend: {mend}"
        )
    if not pictures.is_floating_point():
        raise ValueError(
            f"{who}: pictures of {pictures.dtype} given; allowed are floating-point tensors; mend: "
            f"`pictures.float() / 255`"
        )
    if batch < 1 or len(generators) * batch != shape[0]:
        jobs = max(1, shape[0] // max(1, batch))
        raise ValueError(
            f"{who}: {shape[0]} pictures given with {len(generators)} generators and batch={batch}; allowed is one "
            f"generator a job and `batch` pictures each; mend: "
            f"`[torch.Generator().manual_seed(seed) for seed in range({jobs})]` with batch={shape[0] // jobs}"
        )
    for generator in generators:
        if generator.device.type != "cpu":
            raise ValueError(
                f"{who}: a generator on {generator.device} given; allowed are those on the CPU, so that draws are the "
                f"same on every device; mend: `torch.Generator().manual_seed(0)`"
            )
