"""Recipes are percent scripts: each converts to a notebook, and the one that is meant as a notebook runs as one."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import jupytext
import nbformat
import pytest

RECIPES = Path(__file__).parents[1] / "recipes"
SCRIPTS = sorted(path for path in RECIPES.glob("*.py") if "\n# %%" in f"\n{path.read_text(encoding='utf-8')}")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_notebook(path: Path, tmp_path: Path) -> None:
    made = tmp_path / f"{path.stem}.ipynb"
    jupytext.write(jupytext.read(path, fmt="py:percent"), made)
    notebook = nbformat.reads(made.read_text(encoding="utf-8"), as_version=4)
    nbformat.validate(notebook)
    assert json.loads(made.read_text(encoding="utf-8"))["nbformat"] == 4
    text = path.read_text(encoding="utf-8")
    assert len(notebook.cells) == sum(line.startswith("# %%") for line in text.splitlines())
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(text))  # no line is lost, none is added


@pytest.mark.slow  # half a minute: it runs as a script with the other recipes
def test_the_existing_notebook_runs_as_a_notebook(tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = jupytext.read(RECIPES / "existing_notebook.py", fmt="py:percent")
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [
        output.data["image/png"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result" and "image/png" in output.data
    ]
    assert len(shown) >= 2  # a picture shows itself
