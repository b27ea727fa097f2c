"""A page that was written: its path, which a notebook shows as a link."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # before Python 3.12 only the system's own kind of path can be inherited from


class Page(_Path):
    """The path of an HTML file; in a notebook it shows itself as a link."""

    def _repr_html_(self) -> str:
        # a notebook's server serves what lies below its folder, by a path from there
        here, place = Path.cwd(), Path(self).absolute()
        address = place.relative_to(here).as_posix() if place.is_relative_to(here) else place.as_uri()
        address = quote(address, safe="/:") if not address.startswith("file:") else address
        return f'<a href="{html.escape(address)}" target="_blank" rel="noopener">{html.escape(str(self))}</a>'
