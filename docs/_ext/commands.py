"""The directive `commands`: every command of the command line, as the program tells it when the site is built."""

from __future__ import annotations

from typing import Any

import typer
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from nnsight_dream.cli import NAME, app


def lines_of(command: Any, name: str) -> list[str]:
    """A command in Markdown: usage, what it does, and a list of what it takes."""
    context = typer.Context(command, info_name=f"{NAME} {name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    found = [f"## {name}", "", "```text", usage, "```", "", " ".join((command.help or "").split()), ""]
    for parameter in command.get_params(context):
        told = parameter.get_help_record(context)
        if told is not None and not getattr(parameter, "hidden", False):
            found.append(f"- `{told[0].strip()}`: {' '.join(told[1].split()) or '-'}")
    return [*found, ""]


class Commands(SphinxDirective):
    """Takes nothing."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        program: Any = typer.main.get_command(app)
        lines = [line for name, command in program.commands.items() for line in lines_of(command, name)]
        return self.parse_text_to_nodes("\n".join(StringList(lines, source=__file__)), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
