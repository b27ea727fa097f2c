"""Pictures: one reader for all that shows one, so that the same picture is the same numbers behind every door.

A picture is given as a file (its path or its bytes), a PIL image, a NumPy array, a tensor, or what has one as its
`image`. It is read as

    upright     turned as its EXIF orientation says, as viewers show it
    8 bits      what has more bits (16-bit PNG, modes I and F) is rounded; tensors and arrays of floats stay as they are
    RGB         from whatever mode; colour profiles are not applied, as in transformers and datasets
    on white    where it is transparent
    still       the first frame of an animation
    no larger   than `MOST` pixels: what has more is halved while it is read, as often as that takes

and becomes a tensor (B, 3, H, W) in [0, 1], or a PIL image.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..arguments import file, folder, shown
from ..engine.pixels import shares
from .picture_modes import KINDS, colours_of, of_array, of_floats, of_numbers

MOST = 2**25  # pixels: 5,792 x 5,792, of which floats take 400 MB; no model sees a tenth of it


ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_ORIENTATION = 0x0112


_PROGRAMS = ("EPS",)  # formats that Pillow leaves to another program, whatever the file's name says


_FILTERS = threading.Lock()  # Python's warning filters are the whole process's


class Read(NamedTuple):
    """A picture as it was read.

    image   PIL image, RGB, on white
    cover   what of it is opaque (255) and clear (0), mode L; None for a picture without transparency
    size    (width, height) upright, before it was made smaller
    """

    image: Image.Image
    cover: Image.Image | None
    size: tuple[int, int]


def as_tensors(images: Any, name: str) -> list[torch.Tensor]:
    """Pictures as tensors (B, 3, H, W), RGB in [0, 1], of whatever sizes; see the module for what is taken.

    Raises TypeError for another kind, ValueError for a tensor or array of another shape or range, no picture, and a
    file that cannot be read as one; FileNotFoundError for a file that is not there.
    """
    if not isinstance(images, (list, tuple)):
        images = [images]
    if not images:
        raise ValueError(f"{name}= is empty; give at least one picture")
    return [_tensor(image, name) for image in images]


def as_images(images: Any, name: str = "images") -> list[Image.Image]:
    """Pictures as PIL images, RGB, 8 bits a channel, each of a batch by itself. Raises as `as_tensors`."""
    if not isinstance(images, (list, tuple)):
        images = [images]
    return [still for image in images for still in _stills(_inside(image), name)]


def as_image(image: Any, name: str = "image") -> Image.Image:
    """One picture as a PIL image, RGB, 8 bits a channel. Raises as `as_tensors`, ValueError for more than one."""
    stills = as_images([image], name)
    if len(stills) != 1:
        raise ValueError(f"{name}= holds {len(stills)} pictures; one is needed")
    return stills[0]


def content(picture: Any) -> bytes:
    """A hash of what a picture shows: the pixels of whatever is 8-bit, upright and on white, or the floats of a tensor.

    Raises as `as_tensors`.
    """
    picture = _inside(picture)
    if isinstance(picture, torch.Tensor) or (isinstance(picture, np.ndarray) and picture.dtype.kind == "f"):
        whole = torch.as_tensor(picture).detach().float().cpu().contiguous()
        return hashlib.sha256(f"{tuple(whole.shape)}".encode() + whole.numpy().tobytes()).digest()
    opaque = as_image(picture, "picture").convert("RGBA")
    return hashlib.sha256(f"{opaque.size}".encode() + opaque.tobytes()).digest()


def by_size(groups: Iterable[torch.Tensor], count: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Pictures of one size together, at most `count` at a time: (their numbers, (B, 3, H, W)).

    groups   pictures (B, 3, H, W) of any sizes; numbers count them through all groups, from 0
    """
    sizes: dict[tuple[int, ...], tuple[list[int], list[torch.Tensor]]] = {}
    number = 0
    for group in groups:
        numbers, pictures = sizes.setdefault(tuple(group.shape[1:]), ([], []))
        for picture in group:
            numbers.append(number)
            pictures.append(picture)
            number += 1
    for numbers, pictures in sizes.values():
        for start in range(0, len(pictures), count):
            yield numbers[start : start + count], torch.stack(pictures[start : start + count])


def files(place: str | os.PathLike[str], *, deep: bool = False) -> list[Path]:
    """The picture files of a folder in order; with `deep` also those of folders in it.

    What systems and editors put beside pictures is left out: hidden files and folders (._x.png of macOS,
    .ipynb_checkpoints), __MACOSX, @eaDir, $RECYCLE.BIN. Raises FileNotFoundError for no such folder.
    """
    home = folder(place, "folder", must_exist=True)
    every = sorted(home.rglob("*") if deep else home.iterdir())
    return [p for p in every if p.suffix.lower() in ENDINGS and not hidden(p.relative_to(home)) and p.is_file()]


def hidden(path: Path) -> bool:
    """Whether a path below a folder is none of the user's own."""
    return any(part.startswith((".", "__MACOSX", "@eaDir", "$RECYCLE")) for part in path.parts)


def read(source: Any, name: str = "image") -> Read:
    """One picture, 8 bits a channel, from a file, its bytes, a PIL image or an array of whole numbers.

    name   which picture it is, for messages

    Raises TypeError for another kind, ValueError for what cannot be read as a picture; FileNotFoundError,
    IsADirectoryError and PermissionError for a file that cannot be opened.
    """
    source = _inside(source)
    if isinstance(source, np.ndarray):
        source = _stills(source, name)[0] if source.dtype.kind == "f" else of_array(source, name)
    if isinstance(source, Image.Image):
        return _guarded(lambda: _read(source, source.size), name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _guarded(lambda: _decoded(io.BytesIO(source), name), name)
    if isinstance(source, (str, os.PathLike)):
        place = _place(source, name)
        return _guarded(lambda: _decoded(place, f"{name} ({place})"), name, f" ({place})")
    if callable(getattr(source, "read", None)):  # an open file
        return _guarded(lambda: _decoded(source, name), name)
    raise TypeError(f"{name}= holds a {type(source).__name__}; give {KINDS}")


def _inside(source: Any) -> Any:
    """The picture that a prototype, a labelled picture or a data set's row holds."""
    if isinstance(source, Mapping) and ("bytes" in source or "path" in source):
        return source.get("bytes") or source.get("path")
    readable = (torch.Tensor, np.ndarray, Image.Image, str, bytes, bytearray, memoryview, os.PathLike)
    return source if isinstance(source, readable) else getattr(source, "image", source)


def _place(source: Any, name: str) -> Path:
    try:
        return file(source, name)
    except FileNotFoundError as error:
        if isinstance(source, str) and source.partition(":")[0].lower() in ("http", "https", "data"):
            raise FileNotFoundError(
                f"{name}={shown(source)}: an address is not fetched; save the picture first"
            ) from None
        raise FileNotFoundError(f"{error}; {name}= takes {KINDS}") from None


def _guarded(opened: Callable[[], Read], name: str, place: str = "") -> Read:
    """What a reader gives; whatever it stumbles over in a broken file is one kind of error."""
    try:
        return opened()
    except (MemoryError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"{name} has more than {most:,} pixels, so many that it may be made to fill the memory, and is not read: "
            f"save it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS{place}"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} cannot be read as a picture: Pillow knows no such format{place}") from None
    except Exception as error:  # decoders raise all kinds
        raise ValueError(f"{name} cannot be read as a picture: {error or type(error).__name__}{place}") from error


def _decoded(source: Any, name: str) -> Read:
    with _opened(source) as image:
        size = image.size
        if (factor := _factor(size)) > 1:
            if Image.MAX_IMAGE_PIXELS and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
                warnings.warn(
                    f"{name} has {size[0]} x {size[1]} pixels and is read at 1/{factor} of its sides: saved smaller it "
                    "takes less time and memory",
                    stacklevel=2,
                )
            image.draft(None, (size[0] // factor, size[1] // factor))  # type: ignore[arg-type]  # JPEG decodes no more
        return _read(image, size)


def _opened(source: Any) -> Image.Image:
    """Pillow's image, not decoded yet; without its own warning of many pixels, of which ours says what is done."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.init()
        return Image.open(source, formats=[form for form in Image.ID if form not in _PROGRAMS])


def own_png(path: Path) -> Image.Image:
    """A picture that this package wrote, as PNG and nothing else, RGB. Raises OSError for another file."""
    with Image.open(path, formats=["PNG"]) as image:
        return image.convert("RGB")


def _factor(size: tuple[int, int]) -> int:
    """By how much sides are divided: a power of two, so that a JPEG's decoder can do it."""
    factor = 1
    while size[0] * size[1] > MOST * factor * factor:
        factor *= 2
    return factor


def _read(image: Image.Image, size: tuple[int, int]) -> Read:
    """An image that is held, or was decoded at less than its full `size`."""
    image.load()
    factor = max(1, round(_factor(size) * image.width / size[0]))
    colours = colours_of(image) if factor == 1 else _reduced(image, factor)
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF turns nothing
        orientation = 1
    if orientation in _TURNS:
        colours = colours.transpose(_TURNS[orientation])
        colours.info = {}  # that it is turned by again when it is read again
        size = size[::-1] if orientation >= 5 else size
    if colours.mode == "RGB":
        return Read(colours, None, size)
    ground = Image.new("RGBA", colours.size, "white")
    ground.alpha_composite(colours)
    return Read(ground.convert("RGB"), colours.getchannel("A"), size)


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """The mean of each factor x factor pixels, made in strips, so that no second whole picture is held."""
    image = of_numbers(image) if image.mode[0] in "IF" else image  # what is white, the whole picture tells
    width, height = image.size
    reduced: Image.Image | None = None
    for top in range(0, height, step := factor * 64):
        strip = image.crop((0, top, width, min(height, top + step)))
        small = colours_of(strip).reduce(factor)
        reduced = reduced or Image.new(small.mode, (-(-width // factor), -(-height // factor)))
        reduced.paste(small, (0, top // factor))
    assert reduced is not None
    return reduced


def _tensor(image: Any, name: str) -> torch.Tensor:
    """One picture, or a batch of one size, as (B, 3, H, W)."""
    image = _inside(image)
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        image = of_floats(image, name)
    if isinstance(image, torch.Tensor):
        return _checked(image, name)
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return torch.cat([_tensor(picture, name) for picture in image])
    pixels = np.array(read(image, name).image)  # a copy that may be written to
    return shares(torch.from_numpy(pixels)).permute(2, 0, 1)[None]


def _checked(tensor: torch.Tensor, name: str) -> torch.Tensor:
    picture = tensor.detach()
    picture = shares(picture) if picture.dtype == torch.uint8 else picture.float()
    picture = picture[None] if picture.ndim == 3 else picture
    if picture.ndim != 4 or picture.shape[1] != 3 or not picture.numel():
        raise ValueError(f"{name}=: a picture is (3, H, W) or (B, 3, H, W); got {tuple(tensor.shape)}")
    low, high = (float(x) for x in picture.aminmax())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(f"{name}=: pictures are in [0, 1]; got {low:.3g} to {high:.3g}. Divide 8-bit values by 255")
    return picture


def _stills(image: Any, name: str) -> list[Image.Image]:
    if isinstance(image, torch.Tensor) or (
        isinstance(image, np.ndarray) and (image.ndim == 4 or image.dtype.kind == "f")
    ):
        eights = (255 * _tensor(image, name)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(still) for still in eights]
    return [read(image, name).image]
