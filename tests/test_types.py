"""Types as users meet them: a script under `mypy --strict`, and slips that it must find."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnsight_dream as nd
from nnsight_dream.synthesis.changes import Changes

SCRIPT = Path(__file__).with_name("typed_user.py")
SLIPS = {
    "nd.synthesize(vlm, octopus, stpes=3)": 'Unexpected keyword argument "stpes"',
    "nd.Settings.demo().but(steps='3')": 'incompatible type "str"; expected "int"',
    "nd.synthesize(vlm, octopus, steps='3')": "No overload variant",
    "nd.synthesize(vlm, octopus).rows": '"Prototype" has no attribute "rows"',
    "nd.synthesize(vlm, [octopus]).image": '"Prototypes" has no attribute "image"',
    "nd.Settings.demo().but(stpes=3)": 'Unexpected keyword argument "stpes"',
    "nd.synthesize(vlm, 'octopus')": 'incompatible type "str"',
    "nd.synthesise": "has no attribute",
}


def mypy(path: Path, cache: Path) -> str:
    """What mypy says of a file, strict with it and lenient with what is installed beside."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    options = ["--strict", "--follow-imports=silent", "--no-site-packages", "--ignore-missing-imports"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--config-file=", f"--cache-dir={cache}", str(path)],
        capture_output=True, text=True, cwd=cache, env={**os.environ, "MYPYPATH": str(Path(nd.__file__).parents[1])},
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_users_script_passes_and_slips_are_found(tmp_path: Path) -> None:
    assert mypy(SCRIPT, tmp_path).startswith("Success")
    slips = tmp_path / "slips.py"
    head = "import nnsight_dream as nd\nvlm = nd.load('demo')\noctopus = nd.concept(vlm, 'octopus', layer=1)\n"
    slips.write_text(head + "\n".join(SLIPS) + "\n")
    told = mypy(slips, tmp_path)
    for line, words in enumerate(SLIPS.values(), 4):
        found = [said for said in told.splitlines() if said.startswith(f"slips.py:{line}:")]
        assert any(words in said for said in found), (line, words, told)


def test_changes_are_the_fields_of_settings() -> None:
    """A field that is added to one is added to the other."""
    assert list(Changes.__annotations__) == ["quality"] + [field.name for field in dataclasses.fields(nd.Settings)]
