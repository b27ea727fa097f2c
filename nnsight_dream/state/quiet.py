"""Other libraries' chatter kept out of the way: bars of loading weights, notes, a warning about notebooks' widgets."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator


def import_tqdm() -> None:
    """tqdm, which others import, without its warning in a notebook that has no ipywidgets."""
    if "tqdm.auto" not in sys.modules:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")
            import tqdm.auto  # noqa: F401


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block transformers shows errors alone, and no bars; unless they are asked for.

    They are by $TRANSFORMERS_VERBOSITY, or by `transformers.logging.set_verbosity_info()` and the like. Afterwards all
    is as it was.
    """
    import_tqdm()
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if os.environ.get("TRANSFORMERS_VERBOSITY") or level < logging.WARNING:
        yield
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
