"""The command `nnsight-dream`: thin; every command is a few calls of the library."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import arguments
from .io.files import option_path
from .version import __version__

MOST = 1000  # characters of an error; what was given may be as long as a book


READER_GONE = 141  # 128 + SIGPIPE, as a shell reports of `yes | head`


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines, however many options there are and however narrow the terminal is."""

    def error(self, message: str) -> NoReturn:
        if message.startswith(("unrecognized arguments: -", "the following arguments are required: CONCEPT")):
            message += "; a word that begins with '-' goes behind --, as in: nnsight-dream synthesize --steps 9 -- -x"
        self.exit(
            2, f"usage: {self.prog} ...  ({self.prog} --help lists what it takes)\n{self.prog}: {_short(message)}\n"
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nnsight-dream", description="Pictures of directions in vision-language models.")
    parser.add_argument("--version", action="version", version=f"nnsight-dream {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=functools.partial(_once_ready, run))
        sub.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return sub

    sub = command("synthesize", _synthesize, "Draw what words look like to a model.")
    sub.add_argument("concept", nargs="+", metavar="CONCEPT", help="a word or phrase, such as octopus")
    sub.add_argument("--layer", nargs="+", default=["4"], metavar="N", help="layers from 1, or site names (default 4)")
    _climbing(sub)

    sub = command("feature", _feature, "Draw what features of a sparse autoencoder look like.")
    sub.add_argument("sae", metavar="SAE", help="'demo' (the bundled one), a folder or a release of sae-lens")
    sub.add_argument("which", nargs="+", metavar="[SAE_ID] INDEX", help="the SAE's id in a release; features' numbers")
    sub.add_argument("--objective", choices=("encoder", "decoder"), default="encoder", help="what is climbed")
    sub.add_argument(
        "--reference", nargs="+", metavar="PATH", help="real pictures by which norms are measured: files, or a folder"
    )
    _climbing(sub)

    sub = command("features", _features, "List the features of a sparse autoencoder that fire for words or pictures.")
    sub.add_argument("sae", nargs="?", default="demo", metavar="SAE", help="'demo' (default), a folder or a release")
    sub.add_argument("id", nargs="?", metavar="SAE_ID", help="the SAE's id in a release")
    sub.add_argument("--word", nargs="+", metavar="WORD", help="words or phrases, such as octopus")
    sub.add_argument("--picture", nargs="+", type=Path, metavar="FILE", help="picture files")
    sub.add_argument("--model", default="demo", help="'demo' (default), a hub id or a folder")
    _device(sub)
    sub.add_argument("--top", type=int, default=10, help="how many to show (default 10)")

    sub = command("inspect", _inspect, "Show a model's family, layers, sites and grid, and prove the family's record.")
    sub.add_argument("model", metavar="MODEL", help="'demo', a hub id or a folder")
    sub.add_argument("--layer", default="1", metavar="N", help="the layer whose sites are shown (default 1)")
    sub.add_argument("--batch", type=int, default=1, metavar="B", help="views of the picture in a step (default 1)")
    sub.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the weights (default: as load chooses it)")
    sub.add_argument("--checkpoint-tower", action="store_true", help="compute the tower's activations anew")
    sub.add_argument("--config-only", action="store_true", help="say what a step takes, and load no weights at all")
    _device(sub)

    sub = command("judge", _judge, "Let the bundled judge name pictures.")
    sub.add_argument("path", nargs="+", type=Path, metavar="PATH", help="picture files, or folders of saved prototypes")
    sub.add_argument("--category", help="ask within one category, such as animal")
    _device(sub, "cpu")
    sub.add_argument("--top", type=int, default=3, help="how many names to show (default 3)")

    sub = command("remote", _remote, "List the vision-language models that a server has.")
    sub.add_argument("host", nargs="?", metavar="URL", help="the server's address (default: $NDIF_HOST, or NDIF's own)")

    sub = command("concepts", _concepts, "List what the bundled model was shown.")
    sub.add_argument("--category", help="only one category, such as animal")
    return parser


def _climbing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", default="demo", help="'demo' (default), a hub id or a folder")
    _placing(sub)
    _device(sub)
    sub.add_argument("--steps", type=int, help="steps of the climb (default: the preset's)")
    sub.add_argument("--seed", type=int, nargs="+", default=[0], help="one picture for each (default 0)")
    out = "where to save (default dreams); nothing that is there is overwritten"
    sub.add_argument("--out", type=option_path, default=Path("dreams"), metavar="DIR", help=out)
    sub.add_argument("--judge", action="store_true", help="let the bundled judge name what it sees")


def _placing(sub: argparse.ArgumentParser) -> None:
    """Where a model is; recipes have these too."""
    sub.add_argument(
        "--remote",
        nargs="?",
        const=True,
        default=False,
        metavar="URL",
        help="the model's weights stay on a server: $NDIF_HOST or NDIF's own, the one at URL, or 'local'",
    )
    sub.add_argument("--steps-per-job", type=int, metavar="N", help="cut ascents on a server into jobs of N steps")


def _device(sub: argparse.ArgumentParser, default: str | None = None) -> None:
    """On which device a model's weights are; recipes have this too."""
    best = "the best there is: cuda, then mps, else cpu; the bundled model stays on the cpu"
    sub.add_argument("--device", default=default, help=f"cuda, cuda:1, mps or cpu (default: {default or best})")


def _once_ready(run: Any, args: argparse.Namespace) -> int:
    """Run a command once its model is known to be there: that takes no time, and importing torch takes seconds."""
    if getattr(args, "model", None) is not None:
        from .models.hub import ready

        ready(args.model)
    return int(run(args) or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 not understood, 130 interrupted.

    141 says that the reader of the output went away, as `head` does; what was to be drawn is drawn and saved.
    """
    with _printable(sys.stdout, sys.stderr):
        try:
            try:
                return _run(arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # so that a reader who went away is seen here, not when Python ends
        except BrokenPipeError:
            _no_output()
            return READER_GONE


def _run(given: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(given)
    try:
        with _short_warnings():
            return int(parsed.run(parsed) or 0)
    except KeyboardInterrupt as interrupt:
        print(f"nnsight-dream: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if parsed.debug:
            raise
        print(f"nnsight-dream: {_short(_told(error))} (--debug shows where)", file=sys.stderr)
        return 1


def _told(error: Exception) -> str:
    text = str(error)
    if isinstance(error, (AttributeError, AssertionError, KeyError)) or not text.strip():  # "'x'" alone says nothing
        return f"{type(error).__name__}: {text}" if text.strip() else type(error).__name__
    return text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST else f"{text[: MOST // 2]} ... {text[-MOST // 2 :]}"


@contextlib.contextmanager
def _printable(*streams: Any) -> Iterator[None]:
    """Within the block, characters that an output's encoding lacks (cp1252, ascii) are written as escapes."""
    before = [(stream, stream.errors) for stream in streams if hasattr(stream, "reconfigure")]
    for stream, errors in before:
        if errors in ("strict", "surrogateescape"):  # the second is what LC_ALL=C gives
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in before:
            with contextlib.suppress(ValueError, OSError):  # closed meanwhile, or its reader went away
                stream.reconfigure(errors=errors)


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Within the block, warnings are one line for the reader, without the line of code that gave them."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"nnsight-dream: note: {_short(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _no_output() -> None:
    """Let what is still to be printed go nowhere, so that Python ends in silence."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _console() -> Any:
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program
            raise BrokenPipeError

    return Plain(markup=False)  # a folder or label may hold brackets


def _print_json(value: Any) -> None:
    """One JSON document, in ASCII where the output's encoding has less than Unicode."""
    whole = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
    print(json.dumps(value, ensure_ascii=not whole, indent=1))


def _layers(names: Sequence[str]) -> list[int | str]:
    found: list[int | str] = []
    for name in names:
        numbers = name.replace(",", " ").split()
        if len(numbers) > 1 and all(n.isdecimal() for n in numbers):
            raise ValueError(f"--layer {name!r}: of several layers give each by itself: --layer {' '.join(numbers)}")
        found.append(int(name) if name.isdecimal() else name)
    return found


def _distinct(values: Sequence[Any], name: str) -> list[Any]:
    """Values without repeats, which would only make the same picture again; says what is left out."""
    kept = list(dict.fromkeys(values))
    if len(kept) < len(values):
        twice = next(v for v in kept if values.count(v) > 1)
        print(f"nnsight-dream: note: {name} {twice!r} is given twice and drawn once", file=sys.stderr)
    return kept


def _load(args: argparse.Namespace, **options: Any) -> Any:
    """The model that the options mean; a hub id is only looked for when the user wrote one."""
    from .models import devices
    from .models.load import load

    place = {k: getattr(args, k) for k in ("remote", "steps_per_job") if hasattr(args, k)}
    device = args.device
    if device is None and place.get("remote") in (None, False, "local"):  # with no GPU at all there is nothing to say
        device = "cpu" if devices.best().type == "cpu" and not devices.has_unseen_gpu() else None
    return load(_place(args.model), device=device, **place, **options)


def _place(name: str) -> str | Path:
    """A folder, where there is one of this name; transformers' notes are kept out of the output from here on."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not name.strip():
        raise ValueError(f"{name!r} is no model: give 'demo', a hub id or a folder ('.' is the one you are in)")
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if Path(name).is_dir():
            return Path(name)
    return name


def _synthesize(args: argparse.Namespace) -> int:
    from .directions.text import concept

    _check_numbers(args)
    _check_out(args)
    words = _distinct(arguments.texts(list(args.concept), "CONCEPT")[0], "the concept")
    layers = _distinct(_layers(args.layer), "layer")
    vlm = _load(args)
    found = concept(vlm, words, layers)
    return _climb(args, vlm, [direction for of_word in found for direction in of_word])


def _feature(args: argparse.Namespace) -> int:
    from .sae import reference
    from .sae.make import feature
    from .sae.releases import folder_of

    _check_numbers(args)
    _check_out(args)
    sae_id, indices = None, list(args.which)
    if not indices[0].isdecimal() or folder_of(args.sae, None) is None:  # a folder's may be left out
        sae_id, indices = indices[0], indices[1:]
    wrong = [name for name in indices if not name.isdecimal()]
    if wrong or not indices:
        raise ValueError(
            f"{wrong[0]!r} is no feature's number" if wrong else f"which features of {args.sae} {sae_id}? Give numbers"
        )
    numbers = _distinct([int(name) for name in indices], "feature")
    named = (args.sae, numbers) if sae_id is None else (args.sae, sae_id, numbers)
    given = args.reference[0] if args.reference and len(args.reference) == 1 else args.reference
    found = feature(*named, objective=args.objective, reference=given)
    vlm = _load(args)
    if given is None and (sentence := reference.notice(vlm)) is not None:
        print(sentence.replace("reference='a folder of photographs'", "--reference FOLDER"), file=sys.stderr)
    return _climb(args, vlm, found)


def _features(args: argparse.Namespace) -> int:
    from .sae.activations import candidates
    from .sae.releases import load_sae

    arguments.whole(args.top, "--top", 1)
    if args.word is None and args.picture is None:
        raise ValueError("candidates of what? Give --word octopus, --picture FILE, or both")
    for file in args.picture or []:
        if not file.is_file():
            raise FileNotFoundError(f"no picture {file}: give picture files")
    sae = load_sae(args.sae, args.id)
    found = candidates(_load(args), sae, words=args.word, images=args.picture, top=args.top)
    if args.json:
        rows = [{"index": c.index, "word": c.word, "picture": c.picture, "score": c.score} for c in found]
        _print_json(rows)
        return 0
    for c in found:
        told = [f"{name} {value:.3f}" for name in ("word", "picture") if (value := getattr(c, name)) is not None]
        print(f"{c.index:>8}  {'  '.join(told)}")
    if not found:
        print("no feature fires")
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("steps", "steps_per_job"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    args.seed = _distinct([arguments.whole(n, "--seed", 0, arguments.SEED_MOST) for n in args.seed], "seed")


def _check_out(args: argparse.Namespace) -> None:
    """Whether what will be drawn can be kept, before anything is loaded."""
    from .io.files import check_folder

    check_folder(args.out, "--out", room=2_000_000)


def _climb(args: argparse.Namespace, vlm: Any, flat: Sequence[Any]) -> int:
    from .synthesis import synthesize
    from .synthesis.prototype import Prototype, Prototypes

    changes = {} if args.steps is None else {"steps": args.steps}
    made = synthesize.synthesize(vlm, flat, seed=list(args.seed), **changes)
    assert not isinstance(made, Prototype)
    places, moved = made.save_each(args.out)
    for asked, chosen in moved:
        print(f"nnsight-dream: {asked} holds another picture, which stays; this one is in {chosen}", file=sys.stderr)
    verdicts = _named(made) if args.judge else [None] * len(made)
    if args.json:
        rows = [_row(p, v) | {"folder": str(f)} for p, v, f in zip(made, verdicts, places, strict=True)]
        _print_json({"folder": str(args.out), "prototypes": rows})
    else:
        _print_prototypes(Prototypes(made), verdicts, args.out)
    return 130 if any(p.interrupted for p in made) else 0


def _named(made: Any) -> list[Any]:
    from .judges.named import DemoJudge

    return DemoJudge().judge([p.image for p in made])


def _row(prototype: Any, verdict: Any) -> dict[str, Any]:
    row = {
        "concept": prototype.label,
        "layer": prototype.site.layer,
        "sites": [prototype.site.tl_name, prototype.hf_name],
        "seed": prototype.seed,
        "steps": len(prototype.history),
        "scores": dict(prototype.scores),
    }
    if prototype.readings is not None:
        row["readings"] = dict(prototype.readings)
    if verdict is not None:
        row["judge"] = dict(zip(verdict.names[:5], verdict.probabilities[:5], strict=True))
    return row


def _print_prototypes(made: Any, verdicts: list[Any], out: Path) -> None:
    from .io.files import save_new
    from .synthesis.blocks import to_png

    console = _console()
    for prototype, verdict in zip(made, verdicts, strict=True):
        console.print(prototype)
        console.print(f"{prototype.site} = {prototype.hf_name}", style="dim", highlight=False)
        if verdict is not None:
            seen = ", ".join(f"{n} {p:.0%}" for n, p in zip(verdict.names[:3], verdict.probabilities[:3], strict=True))
            console.print(f"the judge sees: {seen}", highlight=False)
    sheet = save_new(out / "grid.png", to_png(made.grid()))
    console.print(f"saved {len(made)} prototype(s) in {out}, all at one look in {sheet}", highlight=False)


def _inspect(args: argparse.Namespace) -> int:
    arguments.whole(args.batch, "--batch", 1)
    layer = _layers([args.layer])[0]
    vlm = None if args.config_only else _loaded(args)
    step = _step(args, layer, vlm)
    facts = {} if vlm is None else _facts(vlm, layer)
    if args.json:
        _print_json({**facts, "step": step})
    else:
        _print_facts({**facts, **step})
    return 0


def _loaded(args: argparse.Namespace) -> Any:
    import torch

    dtype = {} if args.dtype is None else {"dtype": getattr(torch, args.dtype)}
    return _load(args, checkpoint_tower=args.checkpoint_tower, **dtype)


def _step(args: argparse.Namespace, layer: int | str, vlm: Any) -> dict[str, Any]:
    """What a step takes, from the config alone; its time, from a few of a model that is loaded."""
    import torch

    from .engine.canvas import MultiResolution
    from .models.estimate import estimate, story
    from .sweeps.duration import seconds_a_step
    from .synthesis.settings import Settings

    options: dict[str, Any] = {"batch": args.batch, "checkpoint_tower": args.checkpoint_tower}
    if args.dtype is not None:
        options["dtype"] = getattr(torch, args.dtype)
    x = _place(args.model)
    cpu, gpu = (estimate(x, layer, device=device, **options) for device in ("cpu", "cuda"))
    settings = Settings(batch=args.batch, at_once=args.batch, canvas=MultiResolution(cpu.canvas))
    seconds = None if vlm is None else seconds_a_step(vlm, layer, settings)
    if args.json:
        return {"cpu": cpu.to_dict(), "cuda": gpu.to_dict(), "seconds": seconds}
    words = "" if vlm is None else "not timed: a step takes too long, or too unevenly, to be timed in a moment"
    if vlm is not None and not vlm.passes_gradient:
        words = f"no step: gradient {vlm.unproved['gradient']}"
    if seconds is not None:
        words = f"{seconds:.3g}: a few steps were timed on {vlm.device}, {torch.get_num_threads()} thread(s)"
    return story(cpu, gpu, words)


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
        "image sizes": _sizes(vlm),
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


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        wide = max([11, *map(len, value)]) if isinstance(value, dict) else 0
        lines = "\n".join(f"{k:<{wide}} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        lines = repr(value) if isinstance(value, str) and "\n" in value else lines
        table.add_row(key, lines)
    _console().print(table)


def _sizes(vlm: Any) -> str:
    pixels = vlm.pixels
    if not pixels.any_size:
        return "this one only"
    return f"{pixels.sizes}: nd.load(..., image_size=)"


def _judge(args: argparse.Namespace) -> int:
    from .io.pictures import own_png
    from .judges.named import DemoJudge

    arguments.whole(args.top, "--top", 1)

    files = [p / "prototype.png" if (p / "prototype.png").is_file() else p for p in args.path]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no picture {file}: give picture files or folders that Prototype.save wrote")
    shown = [own_png(f) if p.is_dir() else f for p, f in zip(args.path, files, strict=True)]
    verdicts = DemoJudge(device=args.device).judge(shown, category=args.category)
    if args.json:
        rows = [
            {"path": str(f), "names": dict(zip(v.names[: args.top], v.probabilities[: args.top], strict=True))}
            for f, v in zip(files, verdicts, strict=True)
        ]
        _print_json(rows)
        return 0
    for file, v in zip(files, verdicts, strict=True):
        seen = ", ".join(f"{n} {p:.1%}" for n, p in zip(v.names[: args.top], v.probabilities[: args.top], strict=True))
        print(f"{file}: {seen}")
    return 0


def _remote(args: argparse.Namespace) -> int:
    import dataclasses

    from .models.hosted import remote_models

    found = remote_models(args.host)
    if args.json:
        _print_json([dataclasses.asdict(one) for one in found])
        return 0
    for one in found:
        known = one.family or "no family known here"
        ready = "" if one.ready else ", not loaded for pictures and text"
        print(f"{one.state:<10} {one.id}{f' @ {one.revision}' if one.revision else ''}  ({known}{ready})")
    if not found:
        print("the server has no vision-language model up; it may bring one up when it is asked for")
    return 0


def _concepts(args: argparse.Namespace) -> int:
    import difflib

    from .demo import bundle

    known = bundle.concepts()
    categories = list(dict.fromkeys(c.category for c in known))
    if args.category is not None and args.category not in categories:
        near = difflib.get_close_matches(args.category, categories, 1, 0.0)[0]
        raise ValueError(f"no category {args.category!r}; did you mean {near!r}? There are {', '.join(categories)}")
    shown = [c for c in known if args.category in (None, c.category)]
    if args.json:
        rows = [{"name": c.name, "category": c.category, "aliases": list(c.aliases)} for c in shown]
        _print_json(rows)
        return 0
    for category in dict.fromkeys(c.category for c in shown):
        names = [c.name + (f" ({', '.join(c.aliases)})" if c.aliases else "") for c in shown if c.category == category]
        print(f"{category}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
