"""The commands that draw: `synthesize` and `feature`; and the model that the options of a command mean."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import arguments
from .options import (
    AtOnce,
    Device,
    Json,
    Judged,
    Model,
    Objective,
    Out,
    Quality,
    Remote,
    Seeds,
    Steps,
    StepsPerJob,
    Tower,
    switch,
    word,
)
from .output import distinct, note, picture_paths, print_json, print_prototypes, prototype_row, waiting

OUT = Path("dreams")


@dataclass
class Drawing:
    """What both commands take: the model and its place, the climb, and what becomes of the pictures.

    Raises, before anything is loaded, ValueError for numbers out of range and OSError for a folder `out` that cannot be
    written.
    """

    model: str
    remote: str | None
    steps_per_job: int | None
    device: str | None
    steps: int | None
    seeds: Sequence[int] | None
    out: Path
    judge: bool
    json: bool
    checkpoint_tower: bool = False
    at_once: int | None = None
    quality: str | None = None

    def __post_init__(self) -> None:
        from ..io.files import check_folder
        from ..models.hub import ready

        ready(self.model)  # takes no time, and importing torch takes seconds
        counts = {"--steps": self.steps, "--steps-per-job": self.steps_per_job, "--at-once": self.at_once}
        for option, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{option} {value}: at least 1 is needed")
        numbers = [arguments.whole(n, "--seed", 0, arguments.SEED_MOST) for n in self.seeds or [0]]
        self.seeds = distinct(numbers, "seed")
        check_folder(self.out, "--out", room=2_000_000)

    def load(self) -> Any:
        """The model; a `--remote` without a value means the server of $NDIF_HOST, or NDIF's own."""
        remote = self.remote or (self.remote is not None)
        options: dict[str, Any] = {"checkpoint_tower": True} if self.checkpoint_tower else {}
        with waiting(f"loading {self.model}"):
            return load_model(self.model, self.device, remote=remote, steps_per_job=self.steps_per_job, **options)

    def draw(self, vlm: Any, targets: Sequence[Any]) -> int:
        """Climb, save, judge and show; returns the exit status: 0, or 130 where it was interrupted."""
        from ..synthesis import synthesize
        from ..synthesis.reach import reach

        changes: Any = {"steps": self.steps, "at_once": self.at_once, "quality": self.quality}
        changes = {name: value for name, value in changes.items() if value is not None}
        prototypes = synthesize.synthesize(vlm, targets, seed=list(self.seeds or [0]), **changes)
        if vlm.is_demo and vlm.remote is None:  # of which real pictures are known
            with waiting("comparing with real pictures"):
                reach(vlm, prototypes)
        places, moved = prototypes.save_each(self.out)
        for requested, chosen in moved:
            note(f"{requested} holds another picture, which stays; this one is in {chosen}")
        verdicts = _named(prototypes) if self.judge else [None] * len(prototypes)
        if self.json:
            triples = zip(prototypes, verdicts, places, strict=True)
            rows = [prototype_row(p, v) | picture_paths(place) for p, v, place in triples]
            print_json({"folder": str(self.out), "prototypes": rows})
        else:
            print_prototypes(prototypes, verdicts, places, self.out)
        partial = [p for p in prototypes if p.interrupted]
        if partial or len(prototypes) < len(targets):
            steps = f" after {len(partial[0].history)} steps" if partial else ""
            note(f"interrupted{steps}: what is saved is partial")
        return 130 if partial else 0


def refuse_unshown(words: Sequence[str], strict: bool) -> bool:
    """Say of which words the bundled model knows nothing, before anything is loaded; raises ValueError if `strict`."""
    from ..demo.bundle import unshown

    sentences = [sentence for word in words if (sentence := unshown(word))]
    if sentences and strict:
        raise ValueError(sentences[0])
    for sentence in sentences:
        note(f"note: {sentence}")
    return bool(sentences)


def _named(prototypes: Any) -> list[Any]:
    from ..judges.named import DemoJudge

    return DemoJudge().judge([p.image for p in prototypes])


def synthesize(
    words: Annotated[list[str], typer.Argument(metavar="WORD", help="a word or phrase, such as octopus")],
    layer: Annotated[
        list[str] | None, word("--layer", metavar="N ...", help="layers from 1, or site names (default 1)")
    ] = None,
    model: Model = "demo",
    remote: Remote = None,
    steps_per_job: StepsPerJob = None,
    device: Device = None,
    steps: Steps = None,
    seed: Seeds = None,
    out: Out = OUT,
    judge: Judged = False,
    checkpoint_tower: Tower = False,
    at_once: AtOnce = None,
    quality: Quality = None,
    strict: Annotated[bool, switch("--strict", help="refuse words that the bundled model was never shown")] = False,
    json: Json = False,
) -> int:
    """Draw what words look like to a model.

    For example: nnsight-dream synthesize fox "San Francisco" --layer 1 4 --judge
    """
    drawing = Drawing(
        model, remote, steps_per_job, device, steps, seed, out, judge, json, checkpoint_tower, at_once,
        quality and quality.value,
    )  # fmt: skip
    concepts = distinct(arguments.texts(list(words), "WORD")[0], "the concept")
    layers = distinct(layers_of(layer or ["1"]), "layer")
    warned = refuse_unshown(concepts, strict) if model == "demo" else False
    vlm = drawing.load()
    from ..demo.bundle import unshown_allowed
    from ..directions.text import concept

    with unshown_allowed(warned):
        directions = concept(vlm, concepts, layers)
    return drawing.draw(vlm, directions)


def feature(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="'demo' (the bundled one), a folder or a release")],
    which: Annotated[list[str], typer.Argument(metavar="INDEX", help="SAE's id in a release; features' numbers")],
    objective: Annotated[Objective, typer.Option("--objective", help="what is climbed")] = Objective.encoder,
    reference: Annotated[
        list[str] | None,
        word("--reference", metavar="PATH", help="real pictures by which norms are measured: files, or a folder"),
    ] = None,
    model: Model = "demo",
    remote: Remote = None,
    steps_per_job: StepsPerJob = None,
    device: Device = None,
    steps: Steps = None,
    seed: Seeds = None,
    out: Out = OUT,
    judge: Judged = False,
    checkpoint_tower: Tower = False,
    at_once: AtOnce = None,
    quality: Quality = None,
    json: Json = False,
) -> int:
    """Draw what features of a sparse autoencoder look like.

    For example: nnsight-dream feature demo 3 14
    """
    drawing = Drawing(
        model, remote, steps_per_job, device, steps, seed, out, judge, json, checkpoint_tower, at_once,
        quality and quality.value,
    )  # fmt: skip
    from ..sae import reference as references
    from ..sae.make import feature as make_feature

    paths = reference[0] if reference and len(reference) == 1 else reference
    targets = make_feature(*_named_features(sae, which), objective=objective.value, reference=paths)
    vlm = drawing.load()
    if paths is None and (sentence := references.notice(vlm)) is not None:
        print(sentence.replace("reference='a folder of photographs'", "--reference FOLDER"), file=sys.stderr)
    return drawing.draw(vlm, targets)


def _named_features(sae: str, which: Sequence[str]) -> tuple[Any, ...]:
    """(SAE, numbers) or, of a release, (release, id, numbers). Raises ValueError for what is no number."""
    from ..sae.releases import folder_of

    sae_id, indices = None, list(which)
    local = folder_of(sae, None) is not None
    if not indices[0].isdecimal() or (not local and len(indices) > 1):  # a folder's may be left out
        sae_id, indices = indices[0], indices[1:]
    wrong = [name for name in indices if not name.isdecimal()]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no feature's number")
    if not indices and sae.isdecimal():
        raise ValueError(f"the autoencoder goes first: nnsight-dream feature {sae_id} {sae}")
    if not indices:
        raise ValueError(f"which features of {sae} {sae_id}? Give numbers")
    numbers = distinct([int(name) for name in indices], "feature")
    return (sae, numbers) if sae_id is None else (sae, sae_id, numbers)


def layers_of(names: Sequence[str]) -> list[int | str]:
    """Layers as the library takes them: numbers, or names of sites."""
    return [int(name) if name.isdecimal() else name for name in names]


def load_model(model: str, device: str | None, **options: Any) -> Any:
    """The model that the options mean; a hub id is only looked for when the user wrote one. Raises as `nd.load`."""
    from ..models import devices, load

    if device is None and options.get("remote") in (None, False, "local"):  # with no GPU there is nothing to say
        device = "cpu" if devices.best().type == "cpu" and not devices.has_unseen_gpu() else None
    return load.load(place_of(model), device=device, **options)


def place_of(name: str) -> str | Path:
    """A folder, where there is one of this name; transformers' notes are kept out of the output from here on.

    Raises ValueError for an empty name.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not name.strip():
        raise ValueError(f"{name!r} is no model: give 'demo', a hub id or a folder ('.' is the one you are in)")
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if Path(name).is_dir():
            return Path(name)
    return name
