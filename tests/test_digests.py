"""Digests: what differs in content differs in its digest, what is the same has the same one, in any process."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib.util
import itertools
import math
import operator
import os
import random
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.engine.pooling import cosine
from nnsight_dream.synthesis.digests import digest

HERE = Path(__file__).parent


# -- functions ---------------------------------------------------------------------------------------------------

WEIGHT = 0.5


def closed(weight: Any) -> Callable[..., Any]:
    return lambda a, b: weight * (a * b).sum(-1)


def with_default(weight: Any) -> Callable[..., Any]:
    def score(a, b, w=weight):
        return w * (a * b).sum(-1)

    return score


def with_named_default(weight: Any) -> Callable[..., Any]:
    def score(a, b, *, w=weight):
        return w * (a * b).sum(-1)

    return score


def twice_closed(weight: Any) -> Callable[..., Any]:
    inner = closed(weight)
    return lambda a, b: inner(a, b) + 1


def weighted(a: Any, b: Any, weight: Any) -> Any:
    return weight * (a * b).sum(-1)


class Score:
    """A callable object of the user's own."""

    def __init__(self, weight: Any):
        self.weight = weight

    def __call__(self, a: Any, b: Any) -> Any:
        return self.weight * (a * b).sum(-1)

    def method(self, a: Any, b: Any) -> Any:
        return self.weight * (a - b).sum(-1)


class Slotted:
    __slots__ = ("__weight",)

    def __init__(self, weight: Any):
        self.__weight = weight

    def __call__(self, a: Any, b: Any) -> Any:
        return self.__weight * a


def with_attribute(weight: Any) -> Callable[..., Any]:
    def score(a, b):
        return score.weight * (a * b)

    score.weight = weight
    return score


def with_a_class(weight: Any) -> Any:
    class Local:
        factor = weight

        def __call__(self, a, b):
            return self.factor * a

    return Local()


def with_a_property(weight: Any) -> Any:
    kind = type("Made", (), {"weight": property(lambda self: weight), "__call__": lambda self, a, b: self.weight * a})
    return kind()


def with_a_module(weight: Any) -> Any:
    net = torch.nn.Linear(2, 1, bias=False)
    net.weight.data.fill_(float(torch.as_tensor(weight).sum()))
    return net


MAKERS = [
    closed,
    with_default,
    with_named_default,
    twice_closed,
    lambda w: functools.partial(weighted, weight=w),
    lambda w: functools.partial(weighted, w),
    Score,
    lambda w: Score(w).method,
    Slotted,
    with_attribute,
    with_a_class,
    with_a_property,
    with_a_module,
    lambda w: functools.lru_cache(closed(w)),
    lambda w: functools.wraps(cosine)(closed(w)),
    lambda w: Score([{"deep": (1, {w})}]),
    lambda w: types.SimpleNamespace(w=w),
    lambda w: collections.deque([w]),
]


@pytest.mark.parametrize("make", MAKERS, ids=range(len(MAKERS)))
def test_what_a_function_holds_is_in_its_digest(make: Callable[[Any], Any]) -> None:
    first = digest(make(0.5))
    assert first == digest(make(0.5))
    assert first != digest(make(0.75))


@pytest.mark.parametrize("make", [closed, with_default, Score], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-9])),
        (np.zeros(2), np.array([0.0, 1.0])),
        (np.zeros(2, np.float32), np.zeros(2)),
        (np.zeros((1, 2)), np.zeros((2, 1))),
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
        (Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")),
        (Path("a"), Path("b")),
        (Path("a"), "a"),
        (1, 1.0),
        (1, True),
        ([1, 2], (1, 2)),
        ([[1], 2], [[1, 2]]),
        (["ab", "c"], ["a", "bc"]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.float32, torch.float16),
        (math.sin, math.cos),
        (torch.relu, torch.tanh),
        (torch.nn.functional.relu, torch.nn.functional.gelu),
        (np.add, np.multiply),
        ("x".join, "y".join),
        (torch.ones(2).add, torch.zeros(2).add),
        (torch.Tensor.sum, torch.Tensor.mean),
        (operator.itemgetter(0), operator.itemgetter(1)),
        (math, itertools),
        (nd.Attention(tau=0.5), nd.Attention(tau=0.25)),
        (nd.Attention, nd.Mean),
        (re.compile("a"), re.compile("b")),
        (decimal.Decimal("0.1"), decimal.Decimal("0.2")),
        (datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)),
        (range(3), range(4)),
        (None, 0),
        (torch.eye(2).to_sparse(), torch.zeros(2, 2).to_sparse()),
        (np.array([None, 1], dtype=object), np.array([None, 2], dtype=object)),
    ],
    ids=tiny.name,
)  # fmt: skip
def test_any_plain_content_counts(make: Callable[[Any], Any], one: Any, other: Any) -> None:
    assert digest(make(one)) != digest(make(other))
    assert digest(make(one)) == digest(make(one))


def test_order_of_dicts_and_sets_does_not_count_that_of_lists_does() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"x", "y", "z", 1}) == digest({1, "z", "y", "x"})
    assert digest(["a", "b"]) != digest(["b", "a"])


def test_sameness_does_not_count_as_content() -> None:
    noise = nd.Noise(0.1)
    assert digest((noise, noise)) == digest((nd.Noise(0.1), nd.Noise(0.1)))
    whole = torch.arange(6.0).view(2, 3)
    assert digest(whole.T.contiguous()) == digest(whole.T)
    assert digest(torch.ones(2, requires_grad=True)) == digest(torch.ones(2))


class Kind(enum.Enum):
    A = 1
    B = 2


Pair = collections.namedtuple("Pair", "a b")


def test_enums_named_tuples_and_numbers_with_a_class() -> None:
    assert digest(Kind.A) != digest(Kind.B)
    assert digest(Pair(1, 2)) == digest(Pair(1, 2)) != digest(Pair(1, 3))
    assert digest(np.float32(1)) != digest(np.float64(1))
    assert digest(type("Own", (float,), {})(1.0)) != digest(1.0)


def test_what_holds_itself_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop)
    one, other = Score(1), Score(2)
    one.other, other.other = other, one  # type: ignore[attr-defined]
    assert digest(one) != digest(other)

    def down(n):
        return 0 if not n else down(n - 1)

    assert digest(down) == digest(down)
    with pytest.raises(TypeError, match="nested too deeply"):
        deep: list[Any] = []
        for _ in range(2_000):
            deep = [deep]
        digest(deep)


def test_globals_that_a_function_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(a, b):
        return WEIGHT * weighted(a, b, 1)

    before = digest(score)
    monkeypatch.setitem(globals(), "WEIGHT", 0.75)
    changed = digest(score)
    monkeypatch.setitem(globals(), "weighted", lambda a, b, c: a)
    assert len({before, changed, digest(score)}) == 3
    monkeypatch.setitem(globals(), "UNRELATED", 1)
    monkeypatch.undo()
    assert digest(score) == before


def test_two_bodies_on_one_line_and_what_is_no_content() -> None:
    one, two = lambda a: a * 2, lambda a: a * 3
    assert digest(one) != digest(two)
    space: dict[str, Any] = {}
    exec("def f(a):\n    return a * 2\n\n\ndef g(a):\n    return a * 3\nh = lambda a: (lambda b: a * b)", space)
    assert len({digest(space[name]) for name in "fgh"}) == 3


def test_a_class_redefined_under_its_name_differs() -> None:
    def made(body: str, name: str = "Sharp", bases: str = "") -> Any:
        space: dict[str, Any] = {"dataclasses": dataclasses}
        exec(f"@dataclasses.dataclass\nclass {name}{bases}:\n    power: int = 2\n    {body}\nout = {name}()", space)
        return space["out"]

    one = made("def __call__(self, a, b): return a ** self.power")
    same = made("def __call__(self, a, b): return a ** self.power")
    other = made("def __call__(self, a, b): return b ** self.power")
    assert digest(one) == digest(same) != digest(other)
    one.power = 3
    assert digest(one) != digest(same)


def test_what_an_object_keeps_for_itself_does_not_count() -> None:
    class Keeps:
        def __init__(self):
            self.weight = 1

        @functools.cached_property
        def slow(self):
            return object()

    class Says:
        def __init__(self, weight):
            self.weight, self.lock = weight, threading.Lock()

        def __getstate__(self):
            return {"weight": self.weight}

    keeps = Keeps()
    before = digest(keeps)
    assert keeps.slow
    assert digest(keeps) == before
    assert digest(Says(1)) == digest(Says(1)) != digest(Says(2))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.Generator(), "source of chance"),
        (np.random.default_rng(0), "source of chance"),
        (random.Random(0), "source of chance"),
        (threading.Lock(), "does not say what it holds"),
        (threading.RLock(), "does not say what it holds"),
        (iter([1]), "moves while it is used"),
        ((i for i in range(3)), "moves while it is used"),
        (itertools.count(), "moves while it is used"),
        (torch.empty(2, device="meta"), "has no values here"),
        (np.frompyfunc(lambda a: a, 1, 1), "does not say what it does"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_cannot_be_hashed_is_refused_with_the_way_to_it(value: Any, words: str) -> None:
    for make in (closed, Score, lambda v: functools.partial(weighted, weight=v)):
        with pytest.raises(TypeError, match=words) as error:
            digest(nd.Settings(score=make(value)))
        assert "score" in str(error.value)
        assert "weight" in str(error.value)
        assert str(error.value).count("\n") < 10


def test_a_file_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a", "w") as file, pytest.raises(TypeError, match="moves while it is used"):
        digest(closed(file))


# -- settings and sweeps -----------------------------------------------------------------------------------------


def test_two_scores_have_two_keys_in_a_sweep(tiny_vlm: nd.VLM) -> None:
    from nnsight_dream.sweeps.sweep import plan

    keys = set()
    for power in (1, 2, 2):
        planned = plan(tiny_vlm, [nd.Job("dog")], settings=nd.Settings(score=closed(power)))
        keys |= {key for chunk in planned.chunks for key in chunk.keys}
    assert len(keys) == 2
    with pytest.raises(TypeError, match="source of chance"):
        plan(tiny_vlm, [nd.Job("dog")], settings=nd.Settings(score=closed(torch.Generator())))


def test_hooks_count_by_what_they_do_not_by_their_number() -> None:
    def hooked(k: float) -> torch.nn.Module:
        net = torch.nn.Flatten()
        net.register_forward_hook(lambda module, given, out: out * k)
        return net

    assert digest(hooked(1)) == digest(hooked(1)) != digest(hooked(2))


def test_at_once_is_no_part_of_a_key(tiny_vlm: nd.VLM) -> None:
    from nnsight_dream.sweeps.sweep import plan

    base = nd.Settings(batch=2)
    plans = [plan(tiny_vlm, [nd.Job("dog"), nd.Job("cat")], settings=base.but(at_once=n)) for n in (1, 4)]
    assert [len(p.chunks) for p in plans] == [2, 1]
    assert len({tuple(key for chunk in p.chunks for key in chunk.keys) for p in plans}) == 1
    assert digest(nd.Settings(at_once=1)) == digest(nd.Settings(at_once=64)) != digest(nd.Settings(batch=1))


def test_a_vlm_counts_by_its_weights(tiny_vlm: nd.VLM) -> None:
    before = digest(closed(tiny_vlm))
    assert digest(closed(tiny_vlm)) == before
    assert digest(closed(dataclasses.replace(tiny_vlm, id="another"))) != before


# -- other processes ---------------------------------------------------------------------------------------------

MODULE = """
import dataclasses, enum, functools, torch
import helpers
from helpers import third

FACTOR = {"a", "b", "c"}

class Kind(enum.Enum):
    A = "a"

def nested(weight):
    def inner(x):
        return (lambda y: y * weight)(x) if "x" in {"x", "y", "z"} else len(FACTOR)
    return lambda a, b: inner(a) + helpers.second(b) + third(a)

class Pool:
    def __init__(self, by):
        self.by = by
    def __call__(self, a, b, grid, progress):
        def keep(v):
            return v.mean(1)
        return keep(a), a[..., 0]

@dataclasses.dataclass(frozen=True)
class Aug:
    kinds: frozenset = frozenset({"p", "q", "r"})
    kind: Kind = Kind.A
    def __call__(self, pictures, generators, batch):
        return pictures

ALL = [nested(2), Pool({"k": Kind.A, "j": FACTOR}), functools.partial(nested(3), 1), Aug(), Pool(1).__call__, Kind]
"""


def test_the_same_in_another_process_and_wherever_the_code_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers.py").write_text("def second(b):\n    return b\n\n\ndef third(a):\n    return a\n")
    (tmp_path / "mine.py").write_text(MODULE)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "mine.py").write_text("# moved down, by a comment\n\n" + MODULE.replace("(weight)", "(weight: int)", 1))
    (moved / "helpers.py").write_text('def second(b):\n    """Says it."""\n    return b\ndef third(a): return a\n')
    monkeypatch.syspath_prepend(tmp_path)
    import mine  # type: ignore[import-not-found]

    here = [digest(one) for one in mine.ALL]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import mine; from nnsight_dream.synthesis.digests import digest;"
        "print(*(digest(one) for one in mine.ALL))"
    )
    environment = dict(os.environ, PYTHONHASHSEED="7")
    command = [sys.executable, "-c", code, str(moved)]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert there == here
    assert len(set(here)) == 6


def test_a_module_of_the_users_counts_by_what_is_named_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scores.py").write_text("def mine(a):\n    return a\n\n\ndef other(a):\n    return a\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_scores  # type: ignore[import-not-found]

    def score(a, b):
        return own_scores.mine(a)

    def late(a, b):
        import own_scores as later

        return later.mine(a)

    before, late_before = digest(score), digest(late)
    own_scores.other = lambda a: 2 * a
    assert digest(score) == before
    own_scores.mine = lambda a: 2 * a
    assert digest(score) != before
    (tmp_path / "own_scores.py").write_text("def mine(a):\n    return 3 * a\n")
    assert digest(late) != late_before


def test_a_source_that_has_changed_since_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"

    def loaded() -> Any:
        spec = importlib.util.spec_from_file_location("edited", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.f

    file.write_text("def f(a):\n    return a + 1\n")
    old = loaded()
    file.write_text("def f(a):\n    return a + 22\n")
    assert digest(old) != digest(loaded())
