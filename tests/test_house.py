"""The house kept in order: no file and no function grows too long, and docstrings say what is raised."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import sizes

#: What they raise is caught within, or comes of use that no caller makes by intent.
SILENT = {"io/cache.py: read", "models/checkpoint.py: forward"}


def test_no_file_and_no_function_is_too_long() -> None:
    assert sizes.too_long(sizes.package()) == []


def test_lines_are_counted_with_decorators_and_within_classes(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        'class A:\n    @property\n    def b(self):\n        """Say."""\n        async def c():\n            pass\n\n'
        "        return c\n",
        encoding="utf-8",
    )
    assert sizes.package(tmp_path) == {"some.py": 8, "some.py: b": 7, "some.py: c": 2}


def test_what_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    lines = {"a.py": 321, "a.py: f": 61, "b.py": 320, "b.py: g": 60}
    assert sizes.too_long(lines) == ["a.py has 321 lines, and may have 320", "a.py: f has 61 lines, and may have 60"]
    monkeypatch.setattr(sizes, "EXCEPTIONS", {"a.py": 321, "b.py: g": 90, "c.py": 400})
    assert sizes.too_long(lines) == ["a.py: f has 61 lines, and may have 60"]
    assert sizes.not_needed(lines) == ["b.py: g", "c.py"]
    monkeypatch.setattr(sizes, "package", lambda: lines)
    assert sizes.main() == 1
    assert "longest files: a.py (321), b.py (320)" in capsys.readouterr().out


def test_no_module_imports_a_private_name_of_another() -> None:
    for path in sizes.HOME.rglob("*.py"):
        name = path.relative_to(sizes.HOME).as_posix()
        imports = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        private = [a.name for n in imports if n.level for a in n.names if a.name.startswith("_") and a.name[1] != "_"]
        assert not private, f"{name} imports {', '.join(private)}"


def _raised(function: ast.FunctionDef) -> set[str]:
    calls = [n.exc.func for n in ast.walk(function) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    return {ast.unparse(call) for call in calls}


def test_public_docstrings_say_what_is_raised() -> None:
    """Of functions, and of methods of public classes, that raise in their own lines; a command's text is its help."""
    for path in (path for path in sizes.HOME.rglob("*.py") if path.parent.name != "cli"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        functions = [n for owner in (tree, *classes) for n in owner.body if isinstance(n, ast.FunctionDef)]
        for function in functions:
            text = ast.get_docstring(function) or ""
            if not function.name.startswith("_") and _raised(function) and not text.startswith("See "):
                place = f"{path.relative_to(sizes.HOME).as_posix()}: {function.name}"
                assert "aise" in text or "Error" in text or place in SILENT, f"{place} says not what it raises"
