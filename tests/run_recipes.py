"""Run every recipe that declares QUICK arguments and the README's and pages' blocks, on the bundled model; 1 on a failure.

A recipe takes part with a top-level `QUICK = [...]`, the arguments of a quick run. Of the README and of each page in
docs/, the ```python blocks share one namespace, in order; of the ```console blocks the lines `$ nnsight-dream ...` go
through a shell; the ```pycon blocks are doctests, of whose output `...` may stand for any part and a line may be
wrapped. Blocks of ```py are shown and not run: they need a server, a key or a release. A notebook's code cells share a
namespace likewise.

There is no hub here: where a block loads `STAND_IN`, it is given the bundled model.

    python tests/run_recipes.py [PATH ...]      those recipes, pages and notebooks alone
"""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
STAND_IN = "google/gemma-3-4b-it"


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


def jobs(wanted: list[Path]) -> Iterator[tuple[str, list[str] | str]]:
    """(name, command) of everything to run, or of what is wanted; a command is a list, or a line for a shell."""
    for path in sorted((ROOT / "recipes").glob("*.py")):
        arguments = quick(path)
        if path.name != "train_demo.py" and arguments is not None and (not wanted or path in wanted):
            yield f"recipes/{path.name}", [sys.executable, str(path), *arguments]
    for page in PAGES:
        if wanted and page not in wanted:
            continue
        name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        if any(True for language in ("python", "pycon") for _ in blocks(text, language)):
            yield f"{name}, Python blocks", [sys.executable, __file__, "--python", str(page)]
        for begin, block in blocks(text, "console"):
            for number, line in enumerate(block.splitlines(), begin):
                if line.startswith("$ nnsight-dream"):
                    yield f"{name}:{number} {line}", line[2:]

    for path in NOTEBOOKS:
        if not wanted or path in wanted:
            yield path.relative_to(ROOT).as_posix(), [sys.executable, __file__, "--python", str(path)]


def parts(page: Path) -> list[tuple[int, str, str]]:
    """(line or cell, text, language) of what is to be run of a page or notebook, in order."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = enumerate(json.loads(text)["cells"])
        return [(n, "".join(cell["source"]), "python") for n, cell in cells if cell["cell_type"] == "code"]
    return sorted((*block, language) for language in ("python", "pycon") for block in blocks(text, language))


def runnable(block: str) -> str:
    """A block with the bundled model in the place of the hub's."""
    folder = str(ROOT / "nnsight_dream" / "data" / "vlm")
    return block.replace(f'from_pretrained("{STAND_IN}"', f"from_pretrained({folder!r}").replace(STAND_IN, "demo")


def run_python(page: Path) -> int:
    """Run a page's or notebook's Python in this process, one namespace for all, and say how long each block took."""
    space: dict[str, object] = {"__name__": "__main__"}
    for begin, block, language in parts(page):
        began = time.time()
        if language == "pycon":
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            test = doctest.DocTestParser().get_doctest(block, space, page.name, str(page), begin)
            if doctest.DocTestRunner(optionflags=options).run(test, clear_globs=False).failed:
                return 1
            space.update(test.globs)
        else:
            try:
                # the empty lines before it make a traceback show the page's own line numbers
                exec(compile("\n" * (begin - 1) + runnable(block), str(page), "exec"), space)
            except Exception:
                traceback.print_exc()
                return 1
        print(f"block {time.time() - began:6.1f} s  {page.name}:{begin}", flush=True)
    return 0


def run_file(commands: list[tuple[str, list[str] | str]], environment: dict[str, str]) -> tuple[int, str]:
    """How many of one file's commands failed, run in order in a folder of their own; and what to print about them."""
    failed, lines = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands:
            began = time.time()
            done = subprocess.run(
                command, shell=isinstance(command, str), cwd=folder, capture_output=True, text=True, env=environment
            )
            failed += done.returncode != 0
            lines.append(f"{'FAILED' if done.returncode else 'ok':<6}{time.time() - began:6.1f} s  {name}")
            lines += [f"        {line[6:]}" for line in done.stdout.splitlines() if line.startswith("block ")]
            if done.returncode != 0:
                lines.append(done.stdout[-2000:] + done.stderr[-4000:])
    return failed, "\n".join(lines)


def main(wanted: list[Path]) -> int:
    """Run all, or what is wanted, a file on each of two cores at a time, one line each; 1 if any failed."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment["MPLBACKEND"] = "agg"
    workers = min(2, os.cpu_count() or 1)
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    files: dict[str, list[tuple[str, list[str] | str]]] = {}
    for name, command in jobs(wanted):
        files.setdefault(re.split(r"[,:]", name)[0], []).append((name, command))
    failed = 0
    with ThreadPoolExecutor(workers) as pool:
        for count, lines in pool.map(lambda commands: run_file(commands, environment), files.values()):
            failed += count
            print(lines, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    paths = [Path(word).resolve() for word in sys.argv[1:] if word != "--python"]
    sys.exit(run_python(paths[0]) if "--python" in sys.argv else main(paths))
