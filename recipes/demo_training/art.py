"""Labelled pictures: freely licensed emoji art and icons, fetched from the npm registry and rendered to RGBA.

Design families, not packages, decide who sees what: the model, the judge and the held-out set share none.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 96  # rendered side; training scales down from here
CONCEPTS = Path(__file__).with_name("concepts.txt")


@dataclass(frozen=True)
class Style:
    """One set of drawings: an npm package, its design family, who may see it, and its licence."""

    package: str
    version: str
    family: str
    side: str  # "model", "judge" or "held-out"
    licence: str
    author: str


STYLES = {
    "noto": Style("@iconify-json/noto", "1.2.9", "Noto", "model", "Apache-2.0", "Google"),
    "noto-v1": Style("@iconify-json/noto-v1", "1.2.5", "Noto", "model", "Apache-2.0", "Google"),
    "fluent-3d": Style("@lobehub/fluent-emoji-3d", "1.1.0", "Fluent", "model", "MIT", "Microsoft"),
    "fluent-flat": Style("@iconify-json/fluent-emoji-flat", "1.2.6", "Fluent", "model", "MIT", "Microsoft"),
    "fluent": Style("@iconify-json/fluent-emoji", "1.2.7", "Fluent", "model", "MIT", "Microsoft"),
    "fxemoji": Style("@iconify-json/fxemoji", "1.2.2", "FxEmoji", "model", "Apache-2.0", "Mozilla"),
    "openmoji": Style("@iconify-json/openmoji", "1.2.29", "OpenMoji", "judge", "CC-BY-SA-4.0", "OpenMoji contributors"),
    "emojione": Style("@iconify-json/emojione", "1.2.3", "EmojiOne", "judge", "CC-BY-4.0", "Emoji One"),
    "emojione-v1": Style("@iconify-json/emojione-v1", "1.2.3", "EmojiOne", "judge", "CC-BY-SA-4.0", "Emoji One"),
    "streamline": Style("@iconify-json/streamline-emojis", "1.2.4", "Streamline", "model", "CC-BY-4.0", "Streamline"),
    "twemoji": Style("@iconify-json/twemoji", "1.2.5", "Twemoji", "held-out", "CC-BY-4.0", "Twitter and contributors"),
}
NAMES = ("emojibase-data", "17.0.0")  # Unicode CLDR names, keywords and groups (MIT)
# Icon sets beside the emoji: further classes for the tower, so that it sees more shapes than the concepts have.
ICONS = {
    "flat-color": Style("@iconify-json/flat-color-icons", "1.2.3", "Icons8", "model", "MIT", "Icons8"),
    "kameleon": Style(
        "@iconify-json/streamline-kameleon-color", "1.2.2", "Streamline", "model", "CC-BY-4.0", "Streamline"
    ),
    "ultimate": Style(
        "@iconify-json/streamline-ultimate-color", "1.2.2", "Streamline", "model", "CC-BY-4.0", "Streamline"
    ),
}


@dataclass(frozen=True)
class Concept:
    """A thing the model is shown: its name, category, other names, and the emoji that picture it."""

    name: str
    category: str
    emoji: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def concepts(path: Path = CONCEPTS) -> list[Concept]:
    """The concepts in file order; raises ValueError on a line that is not `name | emoji | aliases`."""
    found, category = [], ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            category = line[1:-1]
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) not in (2, 3) or not parts[1]:
            raise ValueError(f"{path.name}:{number}: expected 'name | emoji ... | alias, alias', got {line!r}")
        aliases = tuple(a.strip() for a in parts[2].split(",")) if len(parts) == 3 else ()
        found.append(Concept(parts[0], category, tuple(parts[1].split()), aliases))
    return found


def code(emoji: str) -> str:
    """Code points in lower-case hex joined by '-', without the presentation selector U+FE0F."""
    return "-".join(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F)


def fetch(folder: Path) -> None:
    """Download and unpack every package that is not there yet (npm must be installed)."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(s.package, s.version) for s in (*STYLES.values(), *ICONS.values())] + [NAMES]
    for package, version in wanted:
        target = folder / f"{package.replace('/', '+')}@{version}"
        if target.exists():
            continue
        if shutil.which("npm") is None:
            raise RuntimeError("npm is needed to fetch the art: install Node.js, or unpack the packages by hand")
        archive = subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(folder / archive) as tar:
            tar.extractall(partial, filter="data")
        (partial / "package").rename(target)
        partial.rmdir()
        (folder / archive).unlink()


def _svg(icons: dict, name: str) -> str | None:
    alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"].get(alias["parent"] if alias else name)
    if icon is None:
        return None
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _fit(image: Image.Image) -> np.ndarray:
    """Crop to what is drawn, then centre it in a SIZE square; scaled alike in both directions."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        raise ValueError("nothing is drawn")
    image = image.crop(box)
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(square)


def _icon_names(style: str, icons: dict, chars: dict, emoji: str, label: str, unicode_name: str) -> list[str]:
    """Names of the icons that draw `emoji`: by code point, else by CLDR name, else by Unicode name run together."""
    by_code = [chars[k] for k in (code(emoji), "-".join(f"{ord(c):x}" for c in emoji)) if k in chars][:1]
    if by_code:
        return by_code
    stem = label.lower().replace(":", "").replace(" ", "-").replace("’", "").replace("'", "")
    names = [stem] + [f"{stem}-{i}" for i in range(1, 6)] * (style == "streamline")
    names += [text.lower().replace(" ", "") for text in (label, unicode_name)] * (style == "fxemoji")
    known = icons.get("icons", {}).keys() | icons.get("aliases", {}).keys()
    return [n for n in dict.fromkeys(names) if n in known]


def _render(style: str, package: Path, emoji: str, names: list[str], icons: dict) -> list[np.ndarray]:
    import resvg_py

    if style == "fluent-3d":
        for name in (code(emoji), "-".join(f"{ord(c):x}" for c in emoji), code(emoji) + "-fe0f"):
            if (file := package / "assets" / f"{name}.webp").exists():
                return [_fit(Image.open(file))]
        return []
    pictures = []
    for name in names:
        svg = _svg(icons, name)
        if svg is not None:
            png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE)
            pictures.append(_fit(Image.open(io.BytesIO(bytes(png)))))
    return pictures


def _package(folder: Path, record: Style) -> tuple[Path, dict, dict]:
    """A style's unpacked package, its icons and its names by code point, where it has them."""
    package = folder / f"{record.package.replace('/', '+')}@{record.version}"
    icons, chars = {}, {}
    if (package / "icons.json").exists():
        icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    if (package / "chars.json").exists():
        raw = json.loads((package / "chars.json").read_text(encoding="utf-8"))
        chars = {**{k.replace("-fe0f", ""): v for k, v in raw.items()}, **raw}
    return package, icons, chars


def render(folder: Path, out: Path) -> None:
    """Render every concept in every style to `out` (npz): pictures uint8 (n, SIZE, SIZE, 4), concept and style ids."""
    base = folder / "emojibase-data@17.0.0"
    data = json.loads((base / "en" / "data.json").read_text(encoding="utf-8"))
    labels = {code(e["emoji"]): e["label"] for e in data}
    unicode_names = json.loads((base / "meta" / "unicode-names.json").read_text(encoding="utf-8"))
    unicode_names = {k.lower().replace("-fe0f", ""): v for k, v in unicode_names.items()}
    pictures, concept_ids, style_ids, codes = [], [], [], []
    for s, (style, record) in enumerate(STYLES.items()):
        package, icons, chars = _package(folder, record)
        for c, concept in enumerate(concepts()):
            for emoji in concept.emoji:
                key = code(emoji)
                names = _icon_names(style, icons, chars, emoji, labels.get(key, ""), unicode_names.get(key, ""))
                for picture in _render(style, package, emoji, names, icons):
                    pictures.append(picture)
                    concept_ids.append(c)
                    style_ids.append(s)
                    codes.append(key)
    _save(
        out,
        pictures=np.stack(pictures),
        concept=np.array(concept_ids),
        style=np.array(style_ids),
        code=np.array(codes),
    )


def _save(out: Path, **arrays: np.ndarray) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.with_suffix(".partial"), "wb") as file:
        np.savez_compressed(file, **arrays)
    out.with_suffix(".partial").rename(out)


PEOPLE, COMPONENTS, FLAGS = 1, 2, 9  # groups of emojibase: hundreds of variants that hardly differ at 64 pixels


def render_more(folder: Path, out: Path) -> None:
    """Render what is no concept to `out` (npz): pictures uint8 (n, SIZE, SIZE, 4), label (n,), words (one a label).

    Every other emoji of the model's styles, but for people and flags, and every icon of `ICONS` but for logos. A
    `-duo` icon is a second picture of the icon without it.
    """
    data = json.loads((folder / "emojibase-data@17.0.0" / "en" / "data.json").read_text(encoding="utf-8"))
    known = {code(e) for c in concepts() for e in c.emoji}
    rest = [
        e for e in data if code(e["emoji"]) not in known and e.get("group") not in (PEOPLE, COMPONENTS, FLAGS, None)
    ]
    words = {code(e["emoji"]): " ".join([e["label"], *e.get("tags", [])]) for e in rest}
    labels: dict[str, int] = {}
    pictures, label_ids = [], []
    for style, record in {**STYLES, **ICONS}.items():
        if record.side != "model":
            continue
        package, icons, chars = _package(folder, record)
        if style in ICONS:
            named = {n: n.removesuffix("-duo") for n in icons["icons"] if "logo" not in n}
            words |= {f"{style}:{key}": key.replace("-", " ") for key in named.values()}
            jobs = [(f"{style}:{key}", "", [n]) for n, key in named.items()]
        else:
            jobs = [
                (code(e["emoji"]), e["emoji"], _icon_names(style, icons, chars, e["emoji"], e["label"], ""))
                for e in rest
            ]
        for key, emoji, names in jobs:
            for picture in _render(style, package, emoji, names, icons):
                pictures.append(picture)
                label_ids.append(labels.setdefault(key, len(labels)))
    _save(out, pictures=np.stack(pictures), label=np.array(label_ids), words=np.array([words[key] for key in labels]))
