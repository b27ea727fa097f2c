"""How often animals were named by eye, told that they are animals: words of the bundled model, and towers alone.

    python benchmarks/blind_towers.py

Each sheet of `benchmarks/blind/towers` shows the same 48 animals in an order of its own, without labels, and was named by a
rater of its own, who knew that all are animals and had seen no other picture. `namings.json` has, in the order of each
sheet, what was climbed to and what the rater wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

from recognition import rate

from nnsight_dream.judges.local import demo_aliases

PLACE = Path(__file__).parent / "blind" / "towers"


def hits(answers: list[list[str]]) -> tuple[int, int]:
    """How many answers name the animal, and how many the one beside it on the sheet."""
    names = {name: [own.lower() for own in group] for name, group in demo_aliases().items()}
    animals, given = zip(*answers, strict=True)

    def named(those: tuple[str, ...]) -> int:
        return sum(answer in names[animal] for animal, answer in zip(those, given, strict=True))

    return named(animals), named(animals[1:] + animals[:1])


def main() -> None:
    """Print the table."""
    print("| pictures | rater, told that all are animals | shuffled labels |\n|---|---|---|")
    for sheet in json.loads((PLACE / "namings.json").read_text(encoding="utf-8")):
        count = len(sheet["answers"])
        right, shifted = hits(sheet["answers"])
        print(f"| {sheet['pictures']} | {rate(right, count)} | {rate(shifted, count)} |")


if __name__ == "__main__":
    main()
