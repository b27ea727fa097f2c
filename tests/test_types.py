"""Types as users meet them: a script and the pages' own lines under mypy and pyright, and slips that they must find."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run_recipes

import nnsight_dream as nd
from nnsight_dream.synthesis.changes import Changes

SCRIPT = Path(__file__).with_name("typed_user.py")
HOME = Path(nd.__file__).parents[1]
SLIPS = {  # a line; what mypy says of it; the rule by which pyright finds it
    "nd.synthesize(vlm, octopus, stpes=3)": ('Unexpected keyword argument "stpes"', "reportCallIssue"),
    "nd.Settings.demo().but(steps='3')": ('incompatible type "str"; expected "int"', "reportArgumentType"),
    "nd.synthesize(vlm, octopus, steps='3')": ("No overload variant", "reportArgumentType"),
    "nd.synthesize(vlm, octopus).rows": ('"Prototype" has no attribute "rows"', "reportAttributeAccessIssue"),
    "nd.synthesize(vlm, [octopus]).image": ('"Prototypes" has no attribute "image"', "reportAttributeAccessIssue"),
    "nd.Settings.demo().but(stpes=3)": ('Unexpected keyword argument "stpes"', "reportCallIssue"),
    "nd.synthesize(vlm, 'octopus')": ('incompatible type "str"', "reportArgumentType"),
    "nd.synthesise": ("has no attribute", "reportAttributeAccessIssue"),
}
HEAD = "import nnsight_dream as nd\nvlm = nd.load('demo')\noctopus = nd.concept(vlm, 'octopus', layer=1)\n"
#: What pyright is told of libraries that it would read for half a minute, and whose types have gaps of their own.
STAND_INS = ("transformers/__init__", "nnsight/__init__", "matplotlib/__init__", "matplotlib/pyplot")


def mypy(path: Path, cache: Path) -> str:
    """What mypy says of a file, strict with it and lenient with what is installed beside."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    options = ["--strict", "--follow-imports=silent", "--no-site-packages", "--ignore-missing-imports"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--config-file=", f"--cache-dir={cache}", str(path)],
        capture_output=True, text=True, cwd=cache, env={**os.environ, "MYPYPATH": str(HOME)},
    )  # fmt: skip
    return done.stdout + done.stderr


def pyright(folder: Path) -> list[tuple[str, int, str, str]]:
    """(file, line, rule, words) of the errors that pyright finds in a folder; strict where a file does not say otherwise."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'pyright[nodejs]'")
    for name in STAND_INS:
        stub = folder / "stubs" / f"{name}.pyi"
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text("from typing import Any\n\ndef __getattr__(name: str) -> Any: ...\n")
    told = dict(include=["*.py"], extraPaths=[str(HOME)], stubPath="stubs", typeCheckingMode="strict")
    (folder / "pyrightconfig.json").write_text(json.dumps(told))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {(done.stderr or done.stdout).strip()[-200:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["summary"]["filesAnalyzed"] == len(list(folder.glob("*.py")))
    return [
        (Path(e["file"]).name, e["range"]["start"]["line"] + 1, e.get("rule", ""), e["message"])
        for e in said["generalDiagnostics"]
        if e["severity"] == "error"
    ]


def lines_of(page: Path) -> str:
    """The code that a page or notebook runs, as one script."""
    examples = doctest.DocTestParser()
    found = []
    for _, text, language in run_recipes.parts(page):
        found += [e.source for e in examples.get_examples(text)] if language == "pycon" else [text + "\n"]
    return "".join(found)


def test_a_users_script_passes_and_slips_are_found(tmp_path: Path) -> None:
    assert mypy(SCRIPT, tmp_path).startswith("Success")
    slips = tmp_path / "slips.py"
    slips.write_text(HEAD + "\n".join(SLIPS) + "\n")
    told = mypy(slips, tmp_path)
    for line, (words, _) in enumerate(SLIPS.values(), 4):
        found = [said for said in told.splitlines() if said.startswith(f"slips.py:{line}:")]
        assert any(words in said for said in found), (line, words, told)


def test_pyright_takes_the_script_and_every_page_and_finds_slips(tmp_path: Path) -> None:
    """Strict with the script and the pages, basic with notebooks, whose functions have no types."""
    shown = "# pyright: reportUnusedExpression=false\n"
    (tmp_path / SCRIPT.name).write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "slips.py").write_text(shown + HEAD + "\n".join(SLIPS) + "\n")
    pages = [page for page in run_recipes.PAGES if page.name != "errors.md"]  # whose lines are wrong on purpose
    for page in [*pages, *run_recipes.NOTEBOOKS]:
        loose = "# pyright: basic, reportOperatorIssue=false\n" if page.suffix == ".ipynb" else ""
        name = "_".join(page.relative_to(run_recipes.ROOT).with_suffix("").parts)
        if code := lines_of(page):
            (tmp_path / f"{name}.py").write_text(shown + loose + code, encoding="utf-8")
    found = pyright(tmp_path)
    assert [one for one in found if one[0] != "slips.py"] == []
    rules = {line: {rule for name, at, rule, _ in found if (name, at) == ("slips.py", line)} for line in range(5, 13)}
    for (line, rule_of), (slip, (_, rule)) in zip(rules.items(), SLIPS.items(), strict=True):
        assert rule in rule_of, (line, slip, rule_of)


def test_changes_are_the_fields_of_settings() -> None:
    """A field that is added to one is added to the other."""
    assert list(Changes.__annotations__) == ["quality"] + [field.name for field in dataclasses.fields(nd.Settings)]
