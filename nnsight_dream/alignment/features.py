"""Features kept on disk: read once in one pass for all layers, by content, chunk by chunk; loaded a layer at a time."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import arguments
from ..arguments import shown
from ..io import cache, files, pictures
from ..stats.scores import at_least
from .encoders import PICTURES

if TYPE_CHECKING:
    from .encoders import Encoder


CHUNK = 256  # items in a file: what an interrupt may cost


@dataclass(frozen=True, eq=False)
class Features(Mapping[int, np.ndarray]):
    """Features by layer: `features[4]` loads layer 4, (n, d) float32, and keeps nothing.

    encoder   where they come from;  n, how many items
    made      how many chunks had to be read from the model; the others were on disk
    """

    encoder: Encoder
    n: int
    made: int
    _layers: tuple[int, ...] = field(repr=False)
    _places: tuple[Path, ...] = field(repr=False)

    def __getitem__(self, layer: int) -> np.ndarray:
        if layer not in self._layers:
            raise KeyError(f"layer {layer!r} was not read; there are {', '.join(map(str, self._layers))}")
        return np.concatenate([_load(place, layer).numpy() for place in self._places])

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Features({self.n} {self.encoder.takes}, layers {list(self._layers)} of {self.encoder.name})"


def features(
    encoder: Encoder,
    items: Iterable[Any],
    layers: Iterable[int] | None = None,
    *,
    batch: int = 16,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """The features of pictures or texts at all layers asked for, in one pass, kept on disk.

    items     PIL images, paths, tensors (3, H, W) in [0, 1] (see `pictures`), or texts, as the encoder takes them; any
              iterable, of which `CHUNK` are in memory at a time
    layers    from 0, the embeddings; all if not given
    folder    where they are kept: `features` in the user's cache folder if not given. A chunk takes 256 x width x 4
              bytes for each layer; nothing is ever removed
    progress  called with the number of items that are ready

    A chunk is found again by the content of its items, the weights, the preprocessing and the choice of tokens; what
    was interrupted goes on where it stopped, and more layers or items cost only themselves.

    Raises ValueError for no items, layers that are not there and items of the wrong kind; OSError where nothing can be
    kept: give another folder=.
    """
    at_least(batch=batch)
    numbers = encoder.check_layers(None if layers is None else list(layers))
    root = cache.folder() / "features" if folder is None else arguments.path(folder, "folder")
    home = files.check_folder(root) / encoder.key
    places: list[Path] = []
    n = computed = 0
    stream = iter(items)
    while some := [_held(item, encoder.takes) for item in itertools.islice(stream, CHUNK)]:
        place = home / _name(encoder, some)
        missing = [layer for layer in numbers if not _is_whole(place, layer, len(some))]
        if missing:
            _make(encoder, some, missing, place, batch)
            computed += 1
        places.append(place)
        n += len(some)
        if progress is not None:
            progress(n)
    if not n:
        raise ValueError(f"no {encoder.takes}: at least one item is needed")
    return Features(encoder, n, computed, tuple(numbers), tuple(places))


def _name(encoder: Encoder, items: list[Any]) -> str:
    digest = hashlib.sha256(b"1")  # the form of the files
    for item in items:
        digest.update(content(item, encoder.takes))
    return digest.hexdigest()[:24]


def _held(item: Any, takes: str) -> Any:
    """A picture as it is read, once for all layers; a text as it is. Raises ValueError for an item of another kind."""
    if takes != PICTURES or isinstance(item, (torch.Tensor, np.ndarray)):
        return item
    if not (isinstance(item, str) and not os.path.isfile(item)):
        with contextlib.suppress(TypeError):
            return pictures.as_image(item, "pictures")
    raise _strange(item, takes)


def content(item: Any, takes: str) -> bytes:
    """A hash of a picture's pixels or a text. Raises ValueError for an item of another kind."""
    if takes == PICTURES and (hasattr(item, "convert") or isinstance(item, (torch.Tensor, np.ndarray))):
        return pictures.content(item)
    if takes != PICTURES and isinstance(item, str):
        return hashlib.sha256(item.encode()).digest()
    raise _strange(item, takes)


def _strange(item: Any, takes: str) -> ValueError:
    needed = "texts (str)"
    if takes == PICTURES:
        needed = "PIL images, tensors (3, H, W) in [0, 1] or paths of files that are there"
    return ValueError(f"a {type(item).__name__} among {takes}: {needed} are needed; got {shown(item)}")


def _file(place: Path, layer: int) -> Path:
    return place / f"layer-{layer}.safetensors"


def _load(place: Path, layer: int) -> torch.Tensor:
    path = _file(place, layer)
    try:
        tensors, _ = files.unpack(path.read_bytes())
        return tensors["features"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be used ({error}); call features again, and it is made anew") from None


def _is_whole(place: Path, layer: int, count: int) -> bool:
    path = _file(place, layer)
    if not path.is_file():
        return False
    try:
        tensors, _ = files.unpack(path.read_bytes())
        if len(tensors["features"]) == count:
            return True
        raise ValueError(f"it does not hold {count} items")
    except Exception as error:  # whatever is wrong with the file, it can be made again
        arguments.warn(f"{path} cannot be used ({error}); it is made anew")
        return False


def _make(encoder: Encoder, items: list[Any], layers: list[int], place: Path, batch: int) -> None:
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for begin in range(0, len(items), batch):
        for layer, value in encoder.read(items[begin : begin + batch], layers).items():
            parts[layer].append(value)
    files.make_folder(place)
    files.sweep_up(place)
    for layer, some in parts.items():
        files.write_whole(_file(place, layer), files.pack({"features": torch.cat(some).contiguous()}, {}))
