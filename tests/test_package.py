"""The package as a whole: quick and quiet to import, every public name there, imports going one way."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

import nnsight_dream as nd
from nnsight_dream.moved import MOVED

HOME = Path(nd.__file__).parent
HEAVY = ("torch", "transformers", "nnsight", "PIL", "numpy", "rich", "safetensors", "sae_lens", "yaml")
AT_A_SERVER = {*sys.stdlib_module_names, "torch", "nnsight", "transformers"}
WITH_NNSIGHT = {
    "alignment/running.py",
    "engine/read.py",
    "models/hosted.py",
    "models/in_hand.py",
    "models/parts.py",
    "models/place.py",
    "models/vlm.py",
    "remote/client.py",
    "remote/loopback.py",
    "remote/run.py",
}

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


def test_public_names_have_docstrings() -> None:
    for name in set(nd.__all__) - {"__version__", "BASELINE_WORDS"}:
        assert (getattr(nd, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("path", sorted(HOME.rglob("__init__.pyi")), ids=lambda path: path.parent.name)
def test_every_name_of_a_stub_is_exported_and_there(path: Path) -> None:
    package = importlib.import_module(".".join(("nnsight_dream", *path.parent.relative_to(HOME).parts)))
    aliases = [
        alias
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert all(alias.asname == alias.name for alias in aliases)  # without `as` a type checker takes it for private
    assert {alias.name for alias in aliases} == set(package.__all__)
    assert all(getattr(package, alias.name) is not None for alias in aliases)


def test_signatures_fit_a_screen() -> None:
    for name in set(nd.__all__) - {"__version__", "BASELINE_WORDS", "Family"}:  # a record of 20 facts
        thing = getattr(nd, name)
        if callable(thing):
            assert len(f"{name}{inspect.signature(thing)}") < 8 * 80, name


def test_version_is_that_of_the_installed_package() -> None:
    try:
        installed = metadata.version("nnsight-dream")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert nd.__version__ == installed


def test_types_are_shipped() -> None:
    assert (HOME / "py.typed").is_file()


def test_no_public_name_is_a_modules() -> None:
    """Of a name that is its module's, as `sweep`, the import of that module leaves the name."""
    for name in nd.__all__:
        assert not isinstance(getattr(nd, name), types.ModuleType), name
    assert importlib.import_module("nnsight_dream.sweeps.sweep").sweep is nd.sweep
    assert not isinstance(importlib.import_module("nnsight_dream.sweeps").plan, types.ModuleType)


def test_old_names_of_modules_work_and_say_the_new_ones() -> None:
    for old, new in MOVED.items():
        with pytest.warns(FutureWarning, match=rf"nnsight_dream\.{old} is nnsight_dream\.{new} now"):
            assert getattr(nd, old) is importlib.import_module(f"nnsight_dream.{new}")


def test_the_engine_imports_nothing_of_ours_outside_it() -> None:
    """It travels to servers as source, and there the package is not."""
    for path in (HOME / "engine").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in AT_A_SERVER, (path, node.module)
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= AT_A_SERVER, path


def test_what_a_family_ships_imports_nothing_of_ours() -> None:
    """`pack`, `encode`, `surrogate`, `states` of a family travel by source too."""
    for path in (HOME / "models" / "family.py", *(HOME / "models" / "families").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                assert not (isinstance(node, ast.ImportFrom) and node.level), (path.name, function.name)


def test_only_some_modules_import_nnsight() -> None:
    def imports(path: Path) -> bool:
        nodes = [
            n
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, (ast.Import, ast.ImportFrom))
        ]
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
        return "nnsight" in {name.split(".")[0] for name in names}

    assert {path.relative_to(HOME).as_posix() for path in HOME.rglob("*.py") if imports(path)} == WITH_NNSIGHT
