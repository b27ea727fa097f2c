"""A direction as what other tools take: a hook function, an nnsight edit, a file of steering vectors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..io import files

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .direction import Direction


def hook(direction: Direction, add: float | None, ablate: bool) -> Callable[..., Any]:
    """See `Direction.hook`."""
    if (add is None) is not bool(ablate):
        raise TypeError("one of the two is needed: add=, a multiple of the vector, or ablate=True")
    vector, factor = (direction.unit().vector, 0.0) if ablate else (direction.vector, arguments.real(add, "add"))
    where = f"direction {direction.label!r} of width {direction.width}, made for {direction.site},"

    def steer(*given: Any, hook: Any = None) -> Any:
        value = given[-1]  # TransformerLens gives the activation and hook=, torch the module, its inputs, its output
        if isinstance(value, tuple):
            return (steer(value[0]), *value[1:])
        heads = value.ndim == 4 and value.shape[2] * value.shape[3] == len(vector)
        if not heads and (value.ndim > 3 or value.shape[-1] != len(vector)):
            raise ValueError(f"{where} cannot steer an activation of shape {tuple(value.shape)}: hook it there")
        flat = value.flatten(2) if heads else value
        axis = vector.to(flat.device)
        if ablate:
            change = -(flat.to(axis.dtype) @ axis)[..., None] * axis
        else:
            change = factor * axis
        return (flat + change.to(flat.dtype)).reshape(value.shape)

    return steer


def edit(direction: Direction, vlm: VLM, add: float | None, ablate: bool) -> Any:
    """See `Direction.edit`."""
    arguments.model(vlm)
    if direction.model != vlm.id:
        raise ValueError(
            f"{direction} is of another model than {vlm.id}; if that is meant, say so: "
            "nd.from_tensor(vlm, direction.vector, layer).edit(...)"
        )
    steer = hook(direction, add, ablate)
    path, _, side = vlm.hf_name(direction.site).rpartition(".")
    with vlm.model.edit() as (tracer, edited):
        for _ in tracer.iter[:]:  # every pass of a generation
            if side == "output":
                edited.get(path).output = steer(edited.get(path).output)
            else:
                edited.get(path).input = steer(edited.get(path).input)
    return edited


def save_control_vectors(directions: Direction | Sequence[Direction], path: str | Path) -> Path:
    """Write directions of one model, each of another layer, as a GGUF file of control vectors; returns its path.

    The form is that of llama.cpp (`--control-vector-scaled`) and repeng: a tensor `direction.N` (d,), float32, is added
    to what block N gives, counted from 0. Needs the package gguf.

    Raises ValueError for directions of several models or twice of one layer, and for a site that the form has no place
    for: it has the residual stream after the second block and later ones. Raises ImportError without gguf, OSError
    where nothing can be written.
    """
    from .direction import Direction

    several, _ = arguments.several(directions, (Direction,), "directions", "a Direction, or a list of them, is")
    path = arguments.path(path)
    for direction in several:
        if direction.site.kind != "resid_post" or direction.site.layer < 2:
            raise ValueError(
                f"{direction}: control vectors are added behind blocks, from the second on: give layer=2 or more, of "
                "kind 'resid_post'"
            )
    layers = [direction.site.layer for direction in several]
    if len({direction.model for direction in several}) > 1 or len(set(layers)) < len(layers):
        raise ValueError(f"one direction a layer, all of one model, are needed; got {', '.join(map(str, several))}")
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ImportError("control vectors are written by the package gguf: pip install gguf") from error
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "vectors.gguf"
        writer = GGUFWriter(draft, "controlvector")
        writer.add_string("controlvector.model_hint", several[0].model)
        writer.add_uint32("controlvector.layer_count", len(several))
        writer.add_description("; ".join(map(str, several)))
        for direction in several:
            writer.add_tensor(f"direction.{direction.site.layer - 1}", direction.vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.write_whole(path, draft.read_bytes())
    return path
