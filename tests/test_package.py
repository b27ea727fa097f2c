"""The package as a whole: quick and quiet to import, every public name there, imports going one way."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import nnsight_dream as nd

HOME = Path(nd.__file__).parent
HEAVY = ("torch", "transformers", "nnsight", "PIL", "numpy", "rich", "safetensors", "sae_lens", "yaml")

LOOK = f"""
import json, os, sys, threading, time, warnings
before = (dict(os.environ), threading.active_count(), list(warnings.filters), list(sys.path), sys.excepthook)
began = time.perf_counter()
import nnsight_dream
took = time.perf_counter() - began
after = (dict(os.environ), threading.active_count(), list(warnings.filters), list(sys.path), sys.excepthook)
dir(nnsight_dream), nnsight_dream.__version__
print(json.dumps([took, before == after, [m for m in {HEAVY!r} if m in sys.modules]]))
"""


def python(*arguments: str, home: Path) -> subprocess.CompletedProcess:
    """A fresh interpreter whose home and cache folders are empty ones."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NNSIGHT_DREAM_CACHE", "HF_HOME")}
    here = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env={**kept, **here}, cwd=home)


def test_import_is_quick_and_leaves_no_trace(tmp_path: Path) -> None:
    done = python("-c", LOOK, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    took, same, heavy = json.loads(done.stdout)
    assert took < 1
    assert same  # environment, threads, warning filters, import path, exception hook
    assert heavy == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["concepts", "--json"], ["synthesize", "--help"]])
def test_the_command_waits_for_nothing_it_does_not_need(tmp_path: Path, arguments: list[str]) -> None:
    if arguments[0] == "concepts" and not (HOME / "data" / "concepts.json").is_file():
        pytest.skip("no bundled data")
    code = (
        "import sys, nnsight_dream.cli as c\n"
        f"try: c.main({arguments!r})\n"
        "except SystemExit as e: assert e.code == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = python("-c", code, home=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (0, "False")
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_is_there() -> None:
    assert len(set(nd.__all__)) == len(nd.__all__)
    for name in nd.__all__:
        assert getattr(nd, name) is not None, name
    assert sorted(nd.__all__) == dir(nd)
    space: dict = {}
    exec("from nnsight_dream import *", space)
    assert set(nd.__all__) <= set(space)
    with pytest.raises(AttributeError, match="has no attribute 'octopus'"):
        nd.octopus  # noqa: B018


def test_public_names_have_docstrings_and_say_the_same_to_type_checkers() -> None:
    tree = ast.parse((HOME / "__init__.py").read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == nd._WHERE
    for name in set(nd.__all__) - {"__version__", "BASELINE_WORDS"}:
        assert (getattr(nd, name).__doc__ or "").strip(), name


def test_version_is_that_of_the_installed_package() -> None:
    try:
        installed = metadata.version("nnsight-dream")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert nd.__version__ == installed


def test_types_are_shipped() -> None:
    assert (HOME / "py.typed").is_file()


def imports(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere, and sibling modules with a leading dot."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {f".{node.module}"} if node.module else {f".{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_no_public_name_is_a_modules() -> None:
    """The import of a module puts it where the name was."""
    public = {name for names in nd._HOMES.values() for name in names}
    assert not public & {path.stem for path in HOME.glob("*.py")}


def test_imports_go_one_way() -> None:
    uses = {path.stem: imports(path) for path in HOME.glob("*.py")}
    assert {name for name, used in uses.items() if "nnsight" in used} == {
        "vlm",
        "encoders",
        "shipped",
        "remote",
        "remote_jobs",
        "hosted",
    }
    for shipped in ("canvas", "augment"):  # these travel to a server
        assert uses[shipped] <= {"math", "dataclasses", "typing", "collections", "torch"}, uses[shipped]
    allowed = {"__future__", "math", "typing", "torch", "nnsight", "transformers", ".canvas"}
    allowed |= {".shipped", ".shipped_scores"}
    for shipped in ("shipped", "shipped_scores", "shipped_jobs"):
        assert uses[shipped] <= allowed, uses[shipped]
    order = [
        "pixels",
        "family",
        "families",
        "probed",
        "sites",
        "shipped",
        "shipped_scores",
        "shipped_jobs",
        "shipping",
        "vlm",
        "remote_errors",
        "remote",
        "trace",
        "vectors",
        "concepts",
        "directions",
        "objectives",
    ]
    order += ["latents", "sae_weights", "sae_models", "sae_files", "sae_releases", "reference", "features"]
    order += ["feature_climb", "synthesis", "remote_ascents", "remote_jobs", "detached", "sae_encoding", "responses"]
    order += ["sae_reading", "cli"]
    for i, name in enumerate(order):
        later = {f".{other}" for other in order[i + 1 :]} & uses[name]
        # where a job needs what stands behind it, it is imported there and then
        known = {"vlm": {".trace", ".remote"}, "objectives": {".directions"}, "remote": {".remote_jobs"}}
        known |= {"remote_ascents": {".remote_jobs"}, "synthesis": {".remote_ascents"}}
        assert later <= known.get(name, set()), (name, later)
