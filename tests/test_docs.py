"""README, pages and project files: what they show is there, fits, and says no more than what is so.

That their blocks run is `make recipes`; that the site builds without a warning, and that its links lead somewhere, is
`make docs`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
from pathlib import Path

import pytest
import run_recipes

import nnsight_dream as nd

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def test_the_readme_is_one_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert "nd.load(hf, processor=processor)" in text
    assert text.index("pip install") < text.index("```python")
    first, second = list(run_recipes.blocks(text, "python"))[:2]
    demo, real = ([line.partition("  #")[0] for line in block.splitlines()] for _, block in (first, second))
    assert [line.replace("google/gemma-3-4b-it", "demo") for line in real] == demo  # the same six lines


def _code(page: Path) -> list[tuple[str, str]]:
    """(place, block) of the Python that a page shows, run or not."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    return [(f"{name}:{n}", block) for language in ("python", "py") for n, block in run_recipes.blocks(text, language)]


def _notebook(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _cells(path: Path) -> list[tuple[str, str]]:
    cells = [c for c in _notebook(path)["cells"] if c["cell_type"] == "code"]
    return [(f"{path.name}, code cell {n}", "".join(cell["source"])) for n, cell in enumerate(cells, 1)]


BLOCKS = [block for page in run_recipes.PAGES for block in _code(page)] + [c for p in NOTEBOOKS for c in _cells(p)]


@pytest.mark.parametrize(("place", "block"), BLOCKS, ids=[place for place, _ in BLOCKS])
def test_names_and_keywords_in_examples_are_there(place: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nd"):
            continue
        assert hasattr(nd, node.attr), f"{place}: no nd.{node.attr}"
    for call in (n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call)):
        name = ast.unparse(call.func)
        if not re.fullmatch(r"nd\.\w+", name):
            continue
        taken = inspect.signature(getattr(nd, name[3:])).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
            continue  # settings and options of other libraries
        unknown = {keyword.arg for keyword in call.keywords} - set(taken) - {None}
        assert not unknown, f"{place}: {name} takes no {unknown}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorials_are_kept_with_the_outputs_of_one_run(path: Path) -> None:
    cells = [c for c in _notebook(path)["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert kinds
    assert path.stat().st_size < 400_000


def test_pictures_of_the_pages_are_small() -> None:
    sizes = {p.name: p.stat().st_size for p in (ROOT / "docs" / "pictures").iterdir() if p.suffix != ".py"}
    assert max(sizes.values()) < 150_000, sizes
    assert sum(sizes.values()) < 800_000, sizes


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    missing = [name for name in nd.__all__ if name.isidentifier() and f"nnsight_dream.{name}\n" not in text]
    assert set(missing) == {"BASELINE_WORDS", "__version__"}, f"{missing}: list the new ones on a page of docs/api/"


def test_every_public_function_has_an_example() -> None:
    """In its docstring, a doctest of the default run, or below it in the reference, which `make recipes` runs."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    below = set(re.findall(r"autofunction:: nnsight_dream\.(\w+)\n```\n\n```pycon", text))
    functions = [n for n in nd.__all__ if inspect.isfunction(getattr(nd, n))]
    without = [n for n in functions if n not in below and ">>>" not in (inspect.getdoc(getattr(nd, n)) or "")]
    assert sorted(without) == ["collect", "remote_models"]  # on a server: `make test-ndif`


def test_versions_agree() -> None:
    version = nd.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_targets_named_in_pages_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    pages = [*run_recipes.PAGES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.py")]
    for page in pages:
        named = set(re.findall(r"`make ([a-z][\w-]+)[`,: ]", page.read_text(encoding="utf-8")))
        assert named <= targets, f"{page.name}: {named - targets}"


def test_the_makefiles_targets_say_what_they_do() -> None:
    done = subprocess.run(["make", "-n", "-C", str(ROOT), "docs", "dist"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--fail-on-warning" in done.stdout
    assert "check_site.py" in done.stdout
