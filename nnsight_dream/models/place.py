"""Where a model's jobs run, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arguments import is_whole, shown
from ..state.nnsight_import import import_nnsight

if TYPE_CHECKING:
    from .vlm import VLM


@dataclass(frozen=True)
class Remote:
    """Where a VLM's jobs run.

    where   "local": in this process, but sent and received as a server would; else a server's address
    steps_per_job   an ascent of more steps is cut into jobs of so many, each going on where the last one stopped
    """

    where: str
    steps_per_job: int | None = None

    @property
    def away(self) -> bool:
        """Whether weights are elsewhere."""
        return self.where != "local"

    def __str__(self) -> str:
        return self.where


def chosen(remote: bool | str, steps_per_job: int | None) -> Remote:
    """What `nd.load(remote=, steps_per_job=)` means. Raises ValueError."""
    if steps_per_job is not None and not (is_whole(steps_per_job) and steps_per_job >= 1):
        raise ValueError(f"steps_per_job={shown(steps_per_job)}: a whole number of at least 1, or None for no cut")
    if remote is True:
        import_nnsight()
        from nnsight.schema.config import CONFIG

        remote = str(CONFIG.API.HOST)
    if remote == "local" or (isinstance(remote, str) and remote.startswith(("http://", "https://"))):
        return Remote(remote.rstrip("/"), steps_per_job)
    raise ValueError(
        f"remote={remote!r}: allowed are True (the server that nnsight is set to, $NDIF_HOST), a server's address such "
        "as 'http://127.0.0.1:8001', 'local', and False"
    )


def weightless(vlm: VLM, what: str) -> None:
    """Raise RuntimeError where a model's weights are on a server and `what` needs them here."""
    if vlm.remote is not None and vlm.remote.away:
        raise RuntimeError(
            f"{what} needs the weights of {vlm.id} here, and they are on {vlm.remote}; load the model without remote="
        )
