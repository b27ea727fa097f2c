"""Run every recipe that declares QUICK arguments and every README block, on the bundled model; non-zero on a failure.

A recipe takes part with a top-level `QUICK = [...]`, the arguments of a quick run. The README's ```python blocks share
one namespace, in order; of its ```console blocks the lines `$ nnsight-dream ...` go through a shell.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def quick(path: Path) -> list[str] | None:
    """The arguments of a recipe's quick run, or None where it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "QUICK":
            return [str(argument) for argument in ast.literal_eval(node.value)]
    return None


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """(line it begins at, text) of each fenced block in a language."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.S | re.M):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def jobs() -> Iterator[tuple[str, list[str] | str]]:
    """(name, command) of everything to run; a command is a list, or a line for a shell."""
    for path in sorted((ROOT / "recipes").glob("*.py")):
        arguments = quick(path)
        if path.name != "train_demo.py" and arguments is not None:
            yield f"recipes/{path.name}", [sys.executable, str(path), *arguments]
    text = README.read_text(encoding="utf-8")
    yield "README.md, python blocks", [sys.executable, __file__, "--python"]
    for begin, block in blocks(text, "console"):
        for number, line in enumerate(block.splitlines(), begin):
            if line.startswith("$ nnsight-dream"):
                yield f"README.md:{number} {line}", line[2:]


def run_python() -> int:
    """Run the README's Python blocks in this process, one namespace for all, and say how long each took."""
    space: dict[str, object] = {"__name__": "__main__"}
    for begin, block in blocks(README.read_text(encoding="utf-8"), "python"):
        began = time.time()
        try:
            # the empty lines before it make a traceback show the README's own line numbers
            exec(compile("\n" * (begin - 1) + block, str(README), "exec"), space)
        except Exception:
            traceback.print_exc()
            return 1
        print(f"block {time.time() - began:6.1f} s  README.md:{begin}", flush=True)
    return 0


def main() -> int:
    """Run all, one line each; 1 if any failed."""
    failed = 0
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in jobs():
            began = time.time()
            done = subprocess.run(
                command, shell=isinstance(command, str), cwd=folder, capture_output=True, text=True, env=environment
            )
            failed += done.returncode != 0
            print(f"{'FAILED' if done.returncode else 'ok':<6}{time.time() - began:6.1f} s  {name}", flush=True)
            for line in done.stdout.splitlines():
                if line.startswith("block "):
                    print(f"        {line[6:]}", flush=True)
            if done.returncode != 0:
                print(done.stdout[-2000:] + done.stderr[-4000:], flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run_python() if sys.argv[1:] == ["--python"] else main())
