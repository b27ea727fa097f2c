"""Making an atlas: a sweep of features or directions that goes on where it stopped, and the map of its pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..arguments import strict
from ..cards.card import Material
from ..io.files import check_folder
from ..sae.encoding import site_of
from ..sae.feature import Feature
from ..sae.make import feature
from ..sae.releases import load_sae
from ..sae.responses import responses
from ..sweeps.aims import jobs_of_aims
from ..sweeps.sweep import plan, sweep
from ..synthesis.prototype import Prototype
from .page import Atlas, Tile, write
from .tiles import cards_in, judged, live_features, tiles_of

if TYPE_CHECKING:
    from ..directions.direction import Direction
    from ..judges.desk import Examiner
    from ..models.vlm import VLM
    from ..sweeps.store import Store
    from ..synthesis.reach import Reach
    from ..synthesis.settings import Choice


@strict
def make_atlas(
    vlm: VLM,
    directions: Sequence[Direction | Feature],
    folder: str | Path,
    *,
    tiles: Sequence[Tile] | None = None,
    seed: int = 0,
    settings: Choice = None,
    tile: int = 64,
    points: Any = None,
    title: str = "Atlas",
    ray: Any = None,
    progress: bool | None = None,
) -> Atlas:
    """Draw directions or features of one width, and write the map of their pictures, `folder/index.html`.

    tiles      the caption of each, see `atlas.Tile`; by default its label
    seed       of the pictures and of the layout
    tile       pixels a side of a picture in the map, 16 to 128
    points     (n, 2): a layout of your own in place of t-SNE
    ray        an `nnsight_dream.sweeps.Cluster`: spread over its workers; settings, progress   as for `nd.sweep`

    The pictures are kept in `folder/sweep`: called again after a stop, it goes on. Directions are laid out by their
    vectors, features by their decoder rows, those of transcoders by their encoder columns. What cannot be drawn is left
    out and listed in `failed`.

    Raises KeyboardInterrupt where Ctrl-C came before the last picture; RuntimeError where none could be drawn;
    ValueError for no direction, several widths, or not one tile for each; ImportError without scikit-learn.
    """
    place = check_folder(folder)
    aims = list(arguments.listed(directions, "directions", "a list of directions or features, is"))
    vectors = [_vector(aim) for aim in aims if hasattr(aim, "label")]
    if not aims or len({len(v) for v in vectors}) > 1:
        widths = sorted({len(v) for v in vectors})
        raise ValueError(f"{len(aims)} directions, of widths {widths}: at least one, and all of one width, are needed")
    tile_list = [Tile(aim.label) for aim in aims] if tiles is None else list(tiles)
    if len(tile_list) != len(aims):
        raise ValueError(f"{len(tile_list)} tiles for {len(aims)} directions: one for each is needed")
    drawn = _drawn(vlm, aims, place / "sweep", settings, seed, ray, progress)
    return _written(drawn, tile_list, vectors, place, points=points, tile=tile, title=title, seed=seed)


@strict
def atlas_of_sae(
    vlm: VLM,
    sae: Any,
    folder: str | Path,
    *,
    sae_id: str | None = None,
    features: Sequence[int] | None = None,
    most: int | None = None,
    material: Material | None = None,
    reference: Any = None,
    objective: str = "encoder",
    judge: Examiner | None = None,
    cards: str | Path | None = None,
    seed: int = 0,
    settings: Choice = None,
    tile: int = 64,
    title: str = "Atlas of features",
    ray: Any = None,
    progress: bool | None = None,
) -> Atlas:
    """Draw the live features of a sparse autoencoder and write the map of their pictures, `folder/index.html`.

    sae        a sae-lens object, or what `load_sae` takes: "demo", a folder, a release with its `sae_id`
    features   their numbers; by default all that fire for any word or picture of the material
    most       so many of them at most, evenly spread by number
    material   words and pictures that they are read on, see `Material`; the bundled ones by default
    judge      such as `nd.DemoExaminer()`: does it name a feature's most activating word in the picture?
    cards      a folder of feature cards with its page, to which a click leads on
    reference, objective   as for `nd.feature`; all else as for `make_atlas`, which says what is raised
    """
    place = check_folder(folder)
    material = Material.bundled() if material is None else material
    sae = load_sae(sae, sae_id) if isinstance(sae, (str, Path)) else sae
    site = site_of(vlm, sae)
    activations = responses(vlm, sae, site, material.words, material.pictures, material.names, features=features)
    numbers = live_features(activations) if features is None else list(activations.features)
    if not numbers:
        raise ValueError("no feature of this autoencoder fires for any word or picture of the material: give features=")
    if most is not None and len(numbers) > arguments.whole(most, "most", 1):
        numbers = [numbers[i * len(numbers) // most] for i in range(most)]
    aims = feature(sae, numbers, objective=objective, reference=reference)
    drawn = _drawn(vlm, aims, place / "sweep", settings, seed, ray, progress)
    verdicts = {}
    if judge is not None:
        verdicts = judged(dict(drawn.of(numbers)), activations, place / "judged", judge, material)
    links = {n: aim.link for n, aim in zip(numbers, aims, strict=True) if aim.link}
    beside = {} if cards is None else cards_in(Path(cards), place)
    tiles = tiles_of(activations, numbers, links=links, cards=beside, verdicts=verdicts)
    summary = f"{len(numbers)} of {int(sae.W_dec.shape[0])} features at {vlm.describe(site)} of {vlm.id}."
    return _written(drawn, tiles, [_vector(a) for a in aims], place, tile=tile, title=title, told=summary, seed=seed)


class _Drawn:
    """Pictures of aims in a store, by their place among the aims."""

    def __init__(self, store: Store, keys: dict[int, str], failed: tuple[tuple[str, str], ...]):
        self.store, self.keys, self.failed = store, keys, failed

    def prototype(self, place: int) -> Prototype:
        return Prototype.load(self.store.place(self.keys[place]))

    def reaches(self) -> dict[int, Reach | None]:
        """How far each picture reaches beside real ones, as the sweep kept it."""
        by_key = {entry.key: entry.reach for entry in self.store.entries()}
        return {place: by_key[key] for place, key in self.keys.items()}

    def of(self, names: Sequence[int]) -> Any:
        """(name, prototype) of those that are there."""
        return ((names[place], self.prototype(place)) for place in self.keys)


def _drawn(
    vlm: VLM, aims: Sequence[Direction | Feature], folder: Path, settings: Choice, seed: int, ray: Any, progress: Any
) -> _Drawn:
    there = [i for i, aim in enumerate(aims) if (aim.alive if isinstance(aim, Feature) else bool(aim.vector.any()))]
    jobs = jobs_of_aims(vlm, [aims[i] for i in there], arguments.whole(seed, "seed", 0, arguments.SEED_MOST))
    if not jobs:
        raise ValueError(f"all of {len(aims)} directions are all zeros and point nowhere")
    done = sweep(vlm, jobs, folder, settings=settings, ray=ray, progress=progress)
    if done.interrupted:
        raise KeyboardInterrupt("the atlas is not finished; called again with the same folder, it goes on")
    planned = [pair for c in plan(vlm, jobs, settings=settings).chunks for pair in zip(c.jobs, c.keys, strict=True)]
    by_job = dict(planned)
    keys = {i: by_job[job] for i, job in zip(there, jobs, strict=True) if by_job[job] not in done.failed}
    failed = [(aims[i].label, "it is all zeros") for i in range(len(aims)) if i not in set(there)]
    failed += [(job.concept, done.failed[by_job[job]]) for job in jobs if by_job[job] in done.failed]
    if not keys:
        raise RuntimeError(f"none of {len(aims)} pictures could be drawn; the first: {failed[0][1]}")
    return _Drawn(done.store, keys, tuple(failed))


def _written(drawn: _Drawn, tiles: Sequence[Tile], vectors: Sequence[torch.Tensor], folder: Path, **how: Any) -> Atlas:
    places = list(drawn.keys)
    pictures = (drawn.prototype(place).image for place in places)
    rows = torch.stack([vectors[place] for place in places]).numpy()
    if how.get("points") is not None:
        how["points"] = [how["points"][place] for place in places]
    reaches = drawn.reaches()
    atlas = write(pictures, [_with_reach(tiles[place], reaches[place]) for place in places], rows, folder, **how)
    return Atlas(atlas.index, atlas.cells, atlas.likeness, drawn.failed)


def _with_reach(tile: Tile, reach: Reach | None) -> Tile:
    """A tile that also tells how far its picture reaches beside real ones, where that was measured."""
    if reach is None or tile.reach:
        return tile
    return dataclasses.replace(tile, reached=reach.reached, reach=str(reach))


def _vector(aim: Direction | Feature) -> torch.Tensor:
    if not isinstance(aim, Feature):
        return aim.vector
    parts = [(w, latent.encoder if latent.decoder is None else latent.decoder) for w, latent in aim.parts]
    return torch.stack([w * row.float().cpu() for w, row in parts]).sum(0)
