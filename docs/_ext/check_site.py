"""Check that every link and picture of a built site leads somewhere in it: `python check_site.py build/docs`.

Files, and the places in them; what leads out of the site is left to `make docs-links`, which needs the network. The
README's and the other pages' links on a host of repositories are checked as files.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The places of a page and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: set[str] = set()
        self.without_text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {given[name] or "" for name in ("id", "name") if name in given}
        self.links |= {given[name] or "" for name in ("href", "src") if name in given}
        if tag == "img" and not given.get("alt"):
            self.without_text.append(str(given.get("src"))[:80])


def faults_of_site(home: Path) -> list[str]:
    """What leads nowhere, a line each."""
    pages = {
        path.resolve(): Page(path) for path in home.rglob("*.html") if path.name not in ("search.html", "genindex.html")
    }
    faults = []
    for path, page in pages.items():
        name = path.relative_to(home.resolve())
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("", "#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                faults.append(f"{name}: {link} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                faults.append(f"{name}: {link} has no such place")
        if not str(name).startswith("tutorials"):
            faults += [f"{name}: a picture without words: {source}" for source in page.without_text]
    return faults


def faults_of_repository() -> list[str]:
    """Links of the files in Markdown that are read as files, a line each."""
    faults = []
    for path in sorted(ROOT.glob("*.md")):
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if not urlsplit(link).scheme and not (path.parent / link.partition("#")[0]).exists():
                faults.append(f"{path.name}: {link} is not there")
    return faults


def main() -> int:
    """Print the faults; 1 if there are any."""
    faults = faults_of_site(Path(sys.argv[1])) + faults_of_repository()
    print("\n".join(faults) or "every link within the site and of the repository's pages leads somewhere")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
