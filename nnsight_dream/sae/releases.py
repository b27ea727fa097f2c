"""Sparse autoencoders by release and id: sae-lens's registry and the Hugging Face cache; fails quickly when offline."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import arguments
from ..demo.bundle import sae_folder
from ..models import hub
from .files import GEMMA, SAE_LENS, Opened, as_sae_lens, load_whole, open_folder, open_gemma, open_sae_lens
from .weights import Held, facts_of


@functools.cache
def _registry() -> tuple[str, dict[str, tuple[int, int]]]:
    """sae-lens's list of releases as text, and where each release stands in it; sae_lens itself is not imported."""
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("releases are looked up in sae-lens's registry: pip install sae-lens")
    text = (Path(next(iter(spec.submodule_search_locations))) / "pretrained_saes.yaml").read_text(encoding="utf-8")
    heads = [(m[1].strip("'\""), m.start()) for m in re.finditer(r"^([^\s#][^:\n]*):", text, re.M)]
    ends = [start for _, start in heads[1:]] + [len(text)]
    return text, {name: (start, end) for (name, start), end in zip(heads, ends, strict=True)}


@functools.cache
def _release(name: str) -> dict[str, Any]:
    """What the registry says of a release; empty for a Hugging Face repository that it does not list."""
    import yaml

    text, places = _registry()
    if name in places:
        start, end = places[name]
        entry: dict[str, Any] = next(iter(yaml.safe_load(text[start:end]).values()))
        return entry
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return {}
    near = difflib.get_close_matches(name, ["demo", *places], 3, 0.6)
    mean = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"no autoencoder {arguments.shown(name)}: it is neither a folder here nor one of sae-lens's {len(places)} "
        f"releases{mean} Give 'demo' (the bundled one), a folder, a release such as 'gemma-scope-2-4b-it-res', or a "
        "Hugging Face repository (owner/name)".replace("releases Give", "releases. Give")
    )


def _listed(release: str, sae_id: str | None) -> tuple[str, str, str, dict[str, Any]]:
    """(repository, folder in it, format, what else is known) of an id. Raises ValueError with the nearest ids."""
    entry = _release(release)
    rows = {str(row["id"]): row for row in entry.get("saes", [])}
    if sae_id is None or (entry and sae_id not in rows):
        near = difflib.get_close_matches(str(sae_id or "medium"), rows, 3, 0.0) or ["..."]
        raise ValueError(
            (f"release {release!r} has no SAE id {sae_id!r}" if sae_id else f"release {release!r} needs an SAE id")
            + (f"; the nearest of its {len(rows)} are {', '.join(near)}" if rows else "")
            + f": nd.feature({release!r}, {near[0]!r}, index)"
        )
    if not entry:
        return release, sae_id, "sae_lens", {}
    row = rows[sae_id]
    return str(entry["repo_id"]), str(row["path"]), str(entry.get("conversion_func") or "sae_lens"), {**entry, **row}


@contextlib.contextmanager
def _patient(what: str) -> Iterator[None]:
    """For sae-lens's loaders, which retry for half a minute and may load parts of a model."""
    with hub.patient(what), hub.never_asking():
        try:
            yield
        except ValueError as error:
            if not hub.foreign(error):
                raise
            raise hub.ForeignCode(
                f"{what} asks to run Python code that comes with it, and code of strangers is never run: load it "
                "yourself with sae-lens, once you have read that code, and pass the object"
            ) from None


def open_release(release: str, sae_id: str | None) -> Opened:
    """Open an autoencoder of a release of sae-lens, or of a Hugging Face repository in sae-lens's format.

    In sae-lens's format and Gemma Scope 2's only the requested part of a file is read; others are loaded whole through
    sae-lens. Raises ValueError for a name that is not listed, ConnectionError where it is neither cached nor reachable.
    """
    repo, path, kind, entry = _listed(release, sae_id)
    source = f"{release}, {sae_id}"
    if kind == "sae_lens":
        more = {**(entry.get("config_overrides") or {}), "neuronpedia_id": entry.get("neuronpedia")}
        config, weights = (hub.file(repo, f"{path}/{name}") for name in SAE_LENS)
        return open_sae_lens(config, weights, source, more, entry.get("norm_scaling_factor"))
    if kind == "gemma_3" and "clt" not in path:
        weights = hub.file(repo, f"{path}/{GEMMA[1]}")
        try:
            config_or_none: Path | None = hub.file(repo, f"{path}/{GEMMA[0]}")
        except (FileNotFoundError, ConnectionError):  # its name tells the same, as sae-lens has it
            config_or_none = None
        more = {"neuronpedia_id": entry.get("neuronpedia"), "model_name": entry.get("model")}
        return open_gemma(config_or_none, weights, path, source, more)
    sae = _by_sae_lens(release, str(sae_id))
    return Opened(Held(sae), facts_of(sae), source)


def _by_sae_lens(release: str, sae_id: str) -> Any:
    with _patient(f"{sae_id} of {release}"):
        from sae_lens import SAE

        return SAE.from_pretrained(release, sae_id)


def opened(source: str | Path, sae_id: str | None) -> Opened:
    """Open "demo", a folder, a folder's subfolder `sae_id`, or a release's SAE; of the tensors nothing is read yet.

    Raises as `open_folder` and `open_release` do.
    """
    if (folder := folder_of(source, sae_id)) is not None:
        return open_folder(folder)
    return open_release(str(source), sae_id)


def load_sae(source: str | Path, sae_id: str | None = None) -> Any:
    """The whole autoencoder as a sae-lens object on the cpu: "demo", a folder, or a release and SAE id.

    Raises as `nd.feature` does for names that are not there or cannot be reached.
    """
    if (folder := folder_of(source, sae_id)) is not None:
        return load_whole(folder)
    _, path, kind, _ = _listed(str(source), sae_id)
    if kind == "gemma_3" and "clt" not in path:
        release = open_release(str(source), sae_id)
        from sae_lens import SAE

        return SAE.load_from_disk(path, converter=lambda path, device, cfg_overrides=None: as_sae_lens(release, device))
    return _by_sae_lens(str(source), str(sae_id))


def folder_of(source: str | Path, sae_id: str | None) -> Path | None:
    """The local folder that is meant, or None for a release."""
    arguments.path(source, "sae")
    if str(source) == "demo":
        from ..demo.bundle import sae_folder

        return sae_folder(sae_id)
    folder = Path(source)
    if folder.is_dir() or isinstance(source, Path):
        return folder if sae_id is None else folder / sae_id
    return None


def demo_sae(layer: int | None = None) -> Any:
    """The bundled sparse autoencoder of the bundled model, as a sae-lens object on the cpu; imports sae_lens (10 s).

    layer   which, if there are several: the block, from 1, after which it reads; the first by default

    Raises FileNotFoundError where this installation has none, ValueError for a layer that has none.

    >>> import nnsight_dream as nd
    >>> tuple(nd.demo_sae().W_dec.shape)
    (2048, 160)
    """
    from .files import load_whole

    return load_whole(sae_folder(layer))
