"""What needs the network after nnsight was imported, each in a process of its own: here pytest has loaded anyio first."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from misbehaving import Misbehaving
from stores import filled, jobs

HERE = Path(__file__).parents[1]
OWN = """
import asyncio, sys

async def own():  # the user's own program
    import httpx
    async with httpx.AsyncClient() as client:
        asked = {"model": "m", "messages": [{"content": ""}]}
        return (await client.post(sys.argv[1] + "/chat/completions", json=asked)).status_code
"""
LOADED = """
import nnsight_dream as nd
assert "nnsight" not in sys.modules and "torch" not in sys.modules and "anyio" not in sys.modules
vlm = nd.load("demo", check=False)
assert hasattr(object, "save")
judge = nd.OpenAIJudge("looker", grader="grader", base_url=sys.argv[1], samples=1)
print(nd.examine(sys.argv[2], judge, progress=False))
print(asyncio.run(own()))
"""
FIRST = """
import nnsight
assert hasattr(object, "save")
import nnsight_dream as nd
judge = nd.OpenAIJudge("looker", grader="grader", base_url=sys.argv[1], samples=1)
print(nd.examine(sys.argv[2], judge, progress=False))
print(asyncio.run(own()))
import anyio, anyio.streams.file

class Mine(anyio.TypedAttributeSet):  # as other packages define them
    name: str = anyio.typed_attribute()

assert (3).save is not None
"""


def test_judges_and_ones_own_clients_after_a_model(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(HERE), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    with Misbehaving() as server:
        server.sends = lambda role, body: "{}" if body["model"] == "m" else None
        running = []
        for n, script in enumerate((LOADED, FIRST)):
            folder = tmp_path / str(n)
            filled(folder, jobs())
            command = [sys.executable, "-c", OWN + script, server.url, str(folder)]
            running.append(
                subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err[-2000:]
            assert out.splitlines()[-2:] == ["6 asked, 12 graded, 0 there before", "200"]


def _imports(tree: ast.AST) -> list[ast.AST]:
    """The statements that import nnsight, or a part of it, when they run."""
    typed = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    hidden = {id(n) for block in typed for n in ast.walk(block)}
    found = []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if any(name.split(".")[0] == "nnsight" for name in names) and id(node) not in hidden:
            found.append(node)
    return found


@pytest.mark.parametrize("path", sorted((HERE / "nnsight_dream").rglob("*.py")), ids=lambda p: p.stem)
def test_nnsight_is_imported_in_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.stem == "nnsight_import" or path.parent.name == "engine":
        return  # the way itself; and what is sent to servers, and runs here only on a model that was loaded
    for function in (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))):
        takes_a_model = {"vlm", "client"} & {a.arg for a in function.args.args}  # then nnsight is there already
        if _imports(function) and not takes_a_model:
            assert "import_nnsight()" in ast.unparse(function), f"{function.name}: call import_nnsight() first"
