"""Fixtures: a random miniature of Gemma 3, its folder, and the bundled demo; no test needs a network."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tiny
import torch

import nnsight_dream as nd

# scripts, which do their work when they are imported, as the search for doctests does
collect_ignore = ["typed_user.py"]

tiny.quiet()
torch.set_num_threads(1)
# a shell that starts a job in the background has it ignore Ctrl-C, which some tests press
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's own cache folder out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNSIGHT_DREAM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_parts() -> tuple:
    """(Hugging Face model, processor) of a random Gemma 3 with 4 layers of width 32 and 4 x 4 image tokens."""
    return tiny.gemma3()


@pytest.fixture(scope="session")
def tiny_vlm(tiny_parts: tuple) -> nd.VLM:
    """The same, loaded."""
    model, processor = tiny_parts
    return nd.load(model, processor=processor)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_parts: tuple) -> Path:
    """A folder that serves `from_pretrained`, with the same weights as `tiny_vlm`."""
    folder = tmp_path_factory.mktemp("tiny-gemma3")
    for part in tiny_parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_vlm() -> nd.VLM:
    """The bundled demo model."""
    try:
        from nnsight_dream.demo import bundle

        there = (bundle.folder() / "vlm" / "config.json").is_file()
    except (ImportError, FileNotFoundError):
        there = False
    if not there:
        pytest.skip("the demo model is not trained yet: run `make train-demo`")
    return nd.load("demo")
