"""The longest files and functions of the package; `make lint` runs it, and it fails where one is too long.

python tests/sizes.py
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

HOME = Path(__file__).parents[1] / "nnsight_dream"

FILE, FUNCTION = 320, 60  # the most lines of each; a function's with its decorators and docstring

#: What may be longer, up to so many lines.
EXCEPTIONS = {
    "models/load.py: load": 80,  # more than half says what its sixteen keywords mean
}


def measured(path: Path, name: str) -> dict[str, int]:
    """Lines of a file, and of each function in it, those within functions and classes too."""
    text = path.read_text(encoding="utf-8")
    lines = {name: len(text.splitlines())}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            place = f"{name}: {node.name}"
            lines[place] = max(lines.get(place, 0), (node.end_lineno or first) - first + 1)
    return lines


def package(home: Path = HOME) -> dict[str, int]:
    """Lines of every file ("models/load.py") and function ("models/load.py: load") of the package."""
    paths = sorted(home.rglob("*.py"))
    return {place: n for path in paths for place, n in measured(path, path.relative_to(home).as_posix()).items()}


def too_long(lines: dict[str, int]) -> list[str]:
    """What is longer than it may be, the longest first, in words."""
    most = {place: EXCEPTIONS.get(place, FUNCTION if ": " in place else FILE) for place in lines}
    longer = sorted((place for place in lines if lines[place] > most[place]), key=lambda place: -lines[place])
    return [f"{place} has {lines[place]} lines, and may have {most[place]}" for place in longer]


def not_needed(lines: dict[str, int]) -> list[str]:
    """Exceptions of what is no longer there, or short enough without one."""
    return [place for place in EXCEPTIONS if lines.get(place, 0) <= (FUNCTION if ": " in place else FILE)]


def main() -> int:
    """Print the longest of each and what is too long; 1 where anything is."""
    lines = package()
    for kind, places in (("file", [p for p in lines if ": " not in p]), ("function", [p for p in lines if ": " in p])):
        longest = sorted(places, key=lambda place: -lines[place])[:3]
        print(f"longest {kind}s: " + ", ".join(f"{place} ({lines[place]})" for place in longest))
    print(f"{sum(n for place, n in lines.items() if ': ' not in place)} lines")
    if needless := not_needed(lines):
        print("exceptions that are no longer needed: " + ", ".join(needless))
    for sentence in too_long(lines):
        print(sentence)
    return bool(too_long(lines))


if __name__ == "__main__":
    sys.exit(main())
