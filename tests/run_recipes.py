"""Run every recipe that declares QUICK arguments and every README block, on the bundled model; non-zero on a failure."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def quick(path: Path) -> list[str] | None:
    """The arguments of a recipe's quick run, or None where it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "QUICK":
            return list(ast.literal_eval(node.value))
    return None


def jobs() -> list[tuple[str, list[str]]]:
    """(name, command) of everything to run; the Python blocks of the README share one program, in order."""
    found = []
    for path in sorted((ROOT / "recipes").glob("*.py")):
        arguments = quick(path)
        if arguments is not None:
            found.append((path.name, [sys.executable, str(path), *arguments]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))
    found.append(("README python", [sys.executable, "-c", program]))
    for block in re.findall(r"```console\n(.*?)```", readme, re.S):
        for line in block.splitlines():
            if line.startswith("$ nnsight-dream "):
                found.append((line, [sys.executable, "-m", "nnsight_dream", *line.split()[2:]]))
    return found


def main() -> int:
    """Run all, one line each."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, command in jobs():
            began = time.time()
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
            failed += done.returncode != 0
            print(f"{'ok' if done.returncode == 0 else 'FAILED'}  {time.time() - began:6.1f} s  {name}", flush=True)
            if done.returncode != 0:
                print(done.stdout[-2000:] + done.stderr[-4000:], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
