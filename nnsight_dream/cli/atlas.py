"""The command that maps many pictures: `atlas`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import arguments
from .drawing import layers_of, load_model
from .options import Device, Folder, Json, Judged, Model, Objective, Quality, Steps, number, word
from .output import note, print_json, say

OUT = Path("atlas")


def atlas(
    sae: Annotated[str, typer.Argument(metavar="[SAE]", help="'demo' (default), a folder or a release")] = "demo",
    sae_id: Annotated[str | None, typer.Argument(metavar="[SAE_ID]", help="the SAE's id in a release")] = None,
    words: Annotated[
        list[str] | None,
        word("--word", help="map concept vectors of these words instead, or of a file of them (@FILE)"),
    ] = None,
    layer: Annotated[
        str | None,
        word("--layer", help="map concept vectors of this layer instead; without --word of all bundled words"),
    ] = None,
    most: Annotated[int | None, number("--most", help="at most so many pictures, evenly spread (default all)")] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="DIR", help="real pictures that features are read on")
    ] = None,
    cards: Annotated[
        Path | None, typer.Option("--cards", metavar="DIR", help="a folder of feature cards to lead to")
    ] = None,
    objective: Annotated[Objective, typer.Option("--objective", help="what is climbed")] = Objective.encoder,
    workers: Annotated[int | None, number("--workers", help="spread over so many Ray workers")] = None,
    tile: Annotated[int, number("--tile", help="pixels a side of a picture in the map (default 64)")] = 64,
    model: Model = "demo",
    device: Device = None,
    steps: Steps = None,
    quality: Quality = None,
    seed: Annotated[int, number("--seed", help="of the pictures and the layout (default 0)")] = 0,
    judge: Judged = False,
    out: Annotated[Path, Folder("--out", "the atlas's folder (default atlas); called again, it goes on")] = OUT,
    json: Json = False,
) -> int:
    """Map the pictures of all live features of a sparse autoencoder, or of many words; goes on where it stopped."""
    _check(model, out, most, workers, steps, tile)
    chosen = layers_of([layer])[0] if layer is not None else 1
    texts = _words(words, most) if words or layer is not None else []
    if texts and (judge or cards is not None or pictures is not None):
        raise ValueError("--judge, --cards and --pictures are for features: leave out --word and --layer")
    vlm = load_model(model, device)
    from ..atlas import make
    from ..synthesis.settings import changed

    settings = changed(vlm, steps=steps, quality=quality and quality.value)
    how: dict[str, Any] = dict(tile=tile, seed=seed, settings=settings, ray=_cluster(vlm, model, workers))

    if texts:
        from ..directions.text import concept

        result = make.make_atlas(
            vlm, concept(vlm, texts, chosen), out, title=f"Words at {vlm.describe(vlm.site(chosen))}", **how
        )
    else:
        from ..cards.card import Material
        from ..judges.local import DemoExaminer

        material = None if pictures is None else Material.of_folder(pictures)
        examiner = DemoExaminer() if judge else None
        result = make.atlas_of_sae(
            vlm, sae, out, sae_id=sae_id, most=most, material=material, objective=objective.value, cards=cards,
            reference=pictures, judge=examiner, title=f"Features of {sae}", **how,
        )  # fmt: skip
    return _tell(result, json)


def _tell(result: Any, json: bool) -> int:
    for label, error in result.failed:
        note(f"{label}: {error}")
    if json:
        likeness = result.likeness and dataclasses.asdict(result.likeness)
        counts = {"pictures": len(result.cells), "failed": dict(result.failed), "likeness": likeness}
        print_json({"page": str(result.index), **counts})
    else:
        say(str(result))
    return int(bool(result.failed))


def _check(model: str, out: Path, most: int | None, workers: int | None, steps: int | None, tile: int) -> None:
    """Before anything is loaded."""
    from ..io.files import check_folder
    from ..models.hub import ready

    ready(model)
    check_folder(out, "--out")
    for option, value, least in (("--most", most, 1), ("--workers", workers, 1), ("--steps", steps, 1)):
        if value is not None:
            arguments.whole(value, option, least)
    arguments.whole(tile, "--tile", 16, 128)


def _words(words: list[str] | None, most: int | None) -> list[str]:
    """The words given, those of files named @FILE, one a line; all bundled ones by default."""
    texts: list[str] = []
    for name in words or []:
        if not name.startswith("@"):
            texts.append(name)
            continue
        path = Path(name[1:])
        if not path.is_file():
            raise FileNotFoundError(f"--word {name}: no file {path}; give a text file with one word a line")
        texts += [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not words:
        from ..demo.bundle import concepts

        texts = [c.name for c in concepts()]
    texts = list(dict.fromkeys(texts))
    return texts if most is None or len(texts) <= most else [texts[i * len(texts) // most] for i in range(most)]


def _cluster(vlm: Any, model: str, workers: int | None) -> Any:
    if workers is None:
        return None
    from ..sweeps.ray import Cluster

    gpus = {"num_gpus": 1.0} if vlm.device.type == "cuda" else {}
    return Cluster(model, workers, resources={"num_cpus": 1.0, **gpus}, device=vlm.device.type)
