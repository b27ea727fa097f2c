"""The commands that look and tell, and draw nothing: `features`, `inspect`, `judge`, `remote`, `concepts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import arguments
from .drawing import layers_of, load_model, place_of, refuse_unshown
from .options import Device, Dtype, Json, Model, number, switch, word
from .output import print_facts, print_json, say, waiting


def features(
    sae: Annotated[str, typer.Argument(metavar="[SAE]", help="'demo' (default), a folder or a release")] = "demo",
    sae_id: Annotated[str | None, typer.Argument(metavar="[SAE_ID]", help="the SAE's id in a release")] = None,
    words: Annotated[list[str] | None, word("--word", help="words or phrases, such as octopus")] = None,
    pictures: Annotated[list[str] | None, word("--picture", metavar="FILE", help="picture files")] = None,
    model: Model = "demo",
    device: Device = None,
    top: Annotated[int, number("--top", help="how many to show (default 10)")] = 10,
    json: Json = False,
) -> None:
    """List the features of a sparse autoencoder that fire for words or pictures.

    For example: nnsight-dream features --word Christmas
    """
    from ..models.hub import ready

    ready(model)
    from ..sae.activations import candidates
    from ..sae.releases import load_sae

    arguments.whole(top, "--top", 1)
    if not words and not pictures:
        raise ValueError("candidates of what? Give --word octopus, --picture FILE, or both")
    if model == "demo":
        refuse_unshown(words or [], strict=False)
    files = [Path(name) for name in pictures] if pictures else None
    for file in files or []:
        if not file.is_file():
            raise FileNotFoundError(f"no picture {file}: give picture files")
    with waiting(f"loading {sae} and {model}"):
        autoencoder = load_sae(sae, sae_id)
        vlm = load_model(model, device)
        active = candidates(vlm, autoencoder, words=words or None, images=files, top=top)
        fires = _fires_for(vlm, autoencoder, [c.index for c in active])
    if json:
        rows = [{"index": c.index, "word": c.word, "picture": c.picture, "score": c.score} for c in active]
        print_json([row | {"fires_for": dict(of_row)} for row, of_row in zip(rows, fires, strict=True)])
        return
    for c, of_feature in zip(active, fires, strict=True):
        scores = [f"{name} {value:.3f}" for name in ("word", "picture") if (value := getattr(c, name)) is not None]
        names = ", ".join(arguments.brief(name, 20) for name, _ in of_feature) or "none of the words asked"
        say(f"{'  '.join(scores)}  fires for {names}", hang=12, first=f"{c.index:>8}  ")
    if not active:
        print("no feature fires")


def _fires_for(vlm: Any, sae: Any, numbers: list[int], count: int = 4) -> list[list[tuple[str, float]]]:
    """Of each feature the words for which it fires most: of the bundled model's vocabulary, or of 100 common words."""
    import torch

    from ..demo import bundle
    from ..directions.baseline_words import BASELINE_WORDS
    from ..sae.encoding import most, site_of
    from ..sae.responses import word_tokens

    if not numbers:
        return []
    words = [c.name for c in bundle.concepts()] if vlm.is_demo else list(dict.fromkeys(BASELINE_WORDS))
    table = torch.stack([most(sae, tokens, numbers) for tokens in word_tokens(vlm, words, site_of(vlm, sae))])
    best = table.T.topk(min(count, len(words)))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(words[i], value) for i, value in zip(*row, strict=True) if value > 0] for row in rows]


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="'demo', a hub id or a folder")],
    layer: Annotated[str, word("--layer", metavar="N", help="the layer whose sites are shown (default 1)")] = "1",
    batch: Annotated[int, number("--batch", metavar="B", help="views of the picture in a step (default 1)")] = 1,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="of the weights (default: as load chooses it)")] = None,
    checkpoint_tower: Annotated[
        bool, switch("--checkpoint-tower", help="compute the tower's activations anew")
    ] = False,
    config_only: Annotated[
        bool, switch("--config-only", help="say what a step takes, and load no weights at all")
    ] = False,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show a model's family, layers, sites and grid, and prove the family's record."""
    from ..models.hub import ready

    ready(model)
    arguments.whole(batch, "--batch", 1)
    (site,) = layers_of([layer])
    options: dict[str, Any] = {"checkpoint_tower": checkpoint_tower}
    if dtype is not None:
        import torch

        options["dtype"] = getattr(torch, dtype.value)
    with waiting(f"loading {model}"):
        vlm = None if config_only else load_model(model, device, **options)
        step = _step(place_of(model), site, vlm, batch, options, json)
    facts = {} if vlm is None else _facts(vlm, site)
    if json:
        print_json({**facts, "step": step})
    else:
        print_facts({**_in_words(facts), **step})


def _step(x: Any, layer: int | str, vlm: Any, batch: int, options: dict[str, Any], json: bool) -> dict[str, Any]:
    """What a step takes, from the config alone; its time, from a few of a model that is loaded."""
    import torch

    from ..engine.canvas import MultiResolution
    from ..models.estimate import estimate, story
    from ..synthesis.settings import Settings
    from ..synthesis.timing import seconds_a_step

    cpu, gpu = (estimate(x, layer, device=device, batch=batch, **options) for device in ("cpu", "cuda"))
    settings = Settings(batch=batch, at_once=batch, canvas=MultiResolution(cpu.canvas))
    seconds = None if vlm is None else seconds_a_step(vlm, layer, settings)
    if json:
        return {"cpu": cpu.to_dict(), "cuda": gpu.to_dict(), "seconds": seconds}
    words = "" if vlm is None else "not timed: a step takes too long, or too unevenly, to be timed in a moment"
    if vlm is not None and not vlm.passes_gradient:
        words = f"no step: gradient {vlm.unproved['gradient']}"
    if seconds is not None:
        words = f"{seconds:.3g}: a few steps were timed on {vlm.device}, {torch.get_num_threads()} thread(s)"
    return story(cpu, gpu, words)


def _in_words(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts as a person reads them, where JSON has lists and bare numbers."""
    if not facts:
        return facts
    sides = {"image": "{} x {} pixels", "grid": "{} x {}"}
    sizes = {name: form.format(*facts[name]) for name, form in sides.items()}
    return {**facts, **sizes, "parameters": f"{facts['parameters']:,}"}


def _facts(vlm: Any, layer: int | str) -> dict[str, Any]:
    first = vlm.site(layer)
    sites = [vlm.describe(vlm.site(first, kind)) for kind in vlm.family.kinds]
    proved = [what for what in ("paths", "image tokens", "pixels", "gradient") if what not in vlm.unproved]
    facts = {
        "model": vlm.id,
        "family": vlm.family.name + (" (probed: there is no record of it)" if vlm.family.probed else ""),
        "class": type(vlm.hf).__name__,
        "layers": vlm.layers,
        "width": vlm.width,
        "image": list(vlm.image_size),
        "image sizes": f"{vlm.pixels.sizes}: nd.load(..., image_size=)" if vlm.pixels.any_size else "this one only",
        "grid": list(vlm.grid),
        "image tokens": vlm.grid[0] * vlm.grid[1],
        "parameters": sum(p.numel() for p in vlm.hf.parameters()),
        "dtype": str(vlm.dtype)[6:],
        "device": str(vlm.device),
        "sites": dict(zip(vlm.family.kinds, sites, strict=True)),
        "before the picture": vlm.tokenizer.decode(vlm.image_prompt.ids[: int(vlm.image_prompt.positions[0])]),
        "check": f"{', '.join(proved)} agree with the family's record",
    }
    if unproved := vlm.unproved:
        facts["not checked"] = "; ".join(unproved.values())
    return facts


def judge(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="picture files, or folders of saved prototypes")],
    category: Annotated[str | None, word("--category", help="ask within one category, such as animal")] = None,
    device: Annotated[str, word("--device", help="cuda, cuda:1, mps or cpu (default: cpu)")] = "cpu",
    top: Annotated[int, number("--top", help="how many names to show (default 3)")] = 3,
    json: Json = False,
) -> None:
    """Let the bundled judge name pictures.

    For example: nnsight-dream judge dreams, of all that synthesize saved there
    """
    from ..io.pictures import own_png
    from ..judges.named import DemoJudge

    arguments.whole(top, "--top", 1)
    files = [file for path in paths for file in _pictures_of(Path(path))]
    pictures = [f if str(f) in paths else own_png(f) if f.name == "prototype.png" else f for f in files]
    verdicts = DemoJudge(device=device).judge(pictures, category=category)
    names = [dict(zip(v.names[:top], v.probabilities[:top], strict=True)) for v in verdicts]
    if json:
        print_json([{"path": str(f), "names": of_file} for f, of_file in zip(files, names, strict=True)])
        return
    for file, of_file in zip(files, names, strict=True):
        say(f"{file}: {', '.join(f'{name} {p:.1%}' for name, p in of_file.items())}")


def _pictures_of(path: Path) -> list[Path]:
    """A picture file; or those of a folder: of the prototypes saved in or below it, else the picture files in it.

    Raises FileNotFoundError where there is none.
    """
    from ..io.pictures import ENDINGS
    from ..synthesis.prototypes import saved_in

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no picture {path}: give picture files, or folders that hold some")
    try:
        return [place / "prototype.png" for place in saved_in(path)]
    except FileNotFoundError:
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in ENDINGS and f.is_file())
        if not files:
            raise FileNotFoundError(f"no picture in {path}: give picture files, or folders that hold some") from None
        return files


def remote(
    host: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="the server's address (default: $NDIF_HOST, or NDIF's own)")
    ] = None,
    json: Json = False,
) -> None:
    """List the vision-language models that a server has."""
    import dataclasses

    from ..models.hosted import remote_models

    models = remote_models(host)
    if json:
        print_json([dataclasses.asdict(model) for model in models])
        return
    for model in models:
        family = model.family or "no family known here"
        loaded = "" if model.ready else ", not loaded for pictures and text"
        revision = f" @ {model.revision}" if model.revision else ""
        say(f"{model.id}{revision}  ({family}{loaded})", hang=11, first=f"{model.state:<10} ")
    if not models:
        say("the server has no vision-language model up; it may bring one up when it is asked for")


def concepts(
    category: Annotated[str | None, word("--category", help="only one category, such as animal")] = None,
    json: Json = False,
) -> None:
    """List what the bundled model was shown."""
    import difflib

    from ..demo import bundle

    entries = bundle.concepts()
    categories = list(dict.fromkeys(c.category for c in entries))
    if category is not None and category not in categories:
        near = difflib.get_close_matches(category, categories, 1, 0.0)[0]
        raise ValueError(f"no category {category!r}; did you mean {near!r}? There are {', '.join(categories)}")
    selected = [c for c in entries if category in (None, c.category)]
    if json:
        print_json([{"name": c.name, "category": c.category, "aliases": list(c.aliases)} for c in selected])
        return
    for name in dict.fromkeys(c.category for c in selected):
        names = [c.name + (f" ({', '.join(c.aliases)})" if c.aliases else "") for c in selected if c.category == name]
        say(f"{name}: {', '.join(names)}")
