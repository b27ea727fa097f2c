"""The command that checks a model on the user's machine: `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .drawing import layers_of, load_model
from .options import Device, Dtype, Json, Remote, option_file, switch, word
from .output import note, print_json, say


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="'demo', a hub id or a folder")],
    quick: Annotated[bool, switch("--quick", help="fewer pictures, words and steps: a minute on the demo")] = False,
    out: Annotated[Path | None, option_file("--out", help="write one HTML page, to look at and to send")] = None,
    layer: Annotated[list[str] | None, word("--layer", metavar="N ...", help="layers to draw (default three)")] = None,
    skip: Annotated[list[str] | None, word("--skip", metavar="SECTION ...", help="sections to leave out")] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="of the weights (default: as load chooses it)")] = None,
    remote: Remote = None,
    device: Device = None,
    json: Json = False,
) -> int:
    """Find out whether a model can be trusted and drawn here: ten sections that pass, fail or are unsure.

    The exit status is 0 where all pass, 1 where one fails, 3 where none fails and one is unsure.
    """
    from ..io.files import check_file
    from ..models.hub import ready

    ready(model)
    if out is not None:
        check_file(out, "--out")
    layers = layers_of(layer or [])
    from ..checkup.examine import SECTIONS, examine
    from ..checkup.page import lines, page
    from ..checkup.section import STATUS

    if wrong := [name for name in skip or [] if name not in SECTIONS]:
        raise ValueError(f"--skip {wrong[0]}: there is no such section; there are {', '.join(SECTIONS)}")
    options: dict[str, Any] = {"check": False, "remote": remote or (remote is not None)}
    if dtype is not None:
        import torch

        options["dtype"] = getattr(torch, dtype.value)
    vlm = load_model(model, device, **options)
    report = examine(vlm, quick=quick, layers=layers, skip=skip or (), told=lambda title: note(f"{title} ..."))
    if out is not None:
        page(report, out)
    if json:
        print_json(report.to_dict())
    else:
        for line in lines(report):
            say(line.lstrip(), hang=8, first=" " * (len(line) - len(line.lstrip())))
        say(f"page: {out}" if out is not None else "--out page.html writes a page to look at and to send")
    return 130 if report.interrupted else STATUS[report.state]
