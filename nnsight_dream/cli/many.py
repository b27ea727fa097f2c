"""The commands for many pictures: `sweep` into a store, and `report` of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import arguments
from .drawing import layers_of, load_model, refuse_unshown
from .options import Device, Folder, Json, Layers, Model, Quality, Seeds, Steps, number, switch, word
from .output import distinct, note, print_json, print_table, say, waiting

STORE = Path("sweep")


def sweep(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD]", help="words or phrases; or --category")] = None,
    layer: Layers = None,
    category: Annotated[
        list[str] | None,
        word("--category", help="all words of a category that the bundled model knows, such as animal"),
    ] = None,
    controls: Annotated[int, number("--controls", help="so many words also with random directions, for chance")] = 0,
    judge: Annotated[bool, switch("--judge", help="let the bundled judge name the pictures, and count")] = False,
    model: Model = "demo",
    device: Device = None,
    steps: Steps = None,
    quality: Quality = None,
    seed: Seeds = None,
    out: Annotated[Path, Folder("--out", "the store's folder (default sweep); called again, it goes on")] = STORE,
    json: Json = False,
) -> int:
    """Draw many words into a store, which goes on where it was stopped.

    For example: nnsight-dream sweep --category animal --layer 1 4 --judge, and then nnsight-dream report sweep
    """
    from ..io.files import check_folder
    from ..models.hub import ready

    ready(model)
    check_folder(out, "--out")
    if steps is not None:
        arguments.whole(steps, "--steps", 1)
    named = _named(words or [], category or [])
    noted = model == "demo" and refuse_unshown(list(named), strict=False)
    from ..demo.bundle import unshown_allowed
    from ..sweeps import jobs
    from ..sweeps.sweep import sweep as draw
    from ..synthesis.settings import changed

    concepts = [(name, group, "") for name, group in named.items()]
    layers = layers_of(layer or ["1"])
    wanted = jobs.jobs_of(concepts, layers, seeds=distinct(seed or [0], "seed"), controls=controls)
    with waiting(f"loading {model}"):
        vlm = load_model(model, device)
    for site in layers:
        vlm.site(site)  # a layer that is not there is refused before anything is drawn
    with unshown_allowed(noted):
        done = draw(vlm, wanted, out, settings=changed(vlm, steps=steps, quality=quality and quality.value))
    rows = _judged(done.store) if judge and not done.interrupted else []
    for key, why in done.failed.items():
        note(f"{key} failed: {why}")
    if json:
        counts = {"made": done.made, "found": done.found, "failed": done.failed}
        pictures = [_entry(entry) for entry in done.store.entries() if entry.key in done.keys]
        print_json({"store": str(out), **counts, "rates": rows, "pictures": pictures})
    else:
        _print_results(done, rows)
    if done.interrupted:
        note("interrupted: called again, it goes on where it stopped")
    return 130 if done.interrupted else int(bool(done.failed))


def _named(words: list[str], categories: list[str]) -> dict[str, str]:
    """The words that are asked for, each with the category that the bundled model knows it in, or none."""
    from ..demo import bundle

    category_of = {c.name: c.category for c in bundle.concepts()}
    for name in categories:
        arguments.choice(name, "--category", sorted(set(category_of.values())), quoted=False)
    names = distinct(arguments.texts(words, "WORD")[0], "the word") if words else []
    names += [name for name, group in category_of.items() if group in categories and name not in names]
    if not names:
        raise ValueError("draw what? Give words, such as fox owl, or --category animal")
    return {name: category_of.get(name, "") for name in names}


def _print_results(done: Any, rows: list[dict[str, Any]]) -> None:
    if not (sys.stderr and sys.stderr.isatty()):  # where there is a bar, it has said so at its end
        say(str(done))
    if rows:
        from ..report.tables import cells, headings

        columns = ["layer", "concepts", "pictures", "rate", "low", "high", "chance", "reached"]
        print()
        say("how often the bundled judge names the word when told its category:")
        print()
        print_table(headings(columns), cells(rows, columns))
    print()
    say(f"to look through them: nnsight-dream report {done.store.folder}")


def _judged(store: Any) -> list[dict[str, Any]]:
    """The bundled judge's rates by layer."""
    from ..judges.examine import examine
    from ..judges.local import DemoExaminer
    from ..judges.tally import results
    from ..report.tables import rates

    examine(store, DemoExaminer())
    return rates(results(store))


def _entry(entry: Any) -> dict[str, Any]:
    named = {name: getattr(entry.job, name) for name in ("concept", "layer", "seed", "control")}
    reach = None if entry.reach is None else entry.reach.record()
    return named | {"picture": str(entry.folder / "prototype.png"), "reach": reach}


def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="the folder of a sweep")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="the page (default STORE/index.html)")
    ] = None,
    raters: Annotated[bool, switch("--raters", help="a page on which people name the pictures, instead")] = False,
    json: Json = False,
) -> None:
    """Write a page to look through a store, which holds all it shows."""
    from ..report.pages import page
    from ..report.raters import raters_page
    from ..sweeps.store import Store

    there = Store(store, must_exist=True)
    place = out or store / ("raters.html" if raters else "index.html")
    result = raters_page(there, place) if raters else page(there, place)
    if json:
        print_json({"page": str(result), "store": str(store)})
    else:
        print(result)
