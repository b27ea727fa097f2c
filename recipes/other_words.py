# %% [markdown]
# # Words that the pictures' labels never used
#
# A real language model has directions for any word, phrase or language; the eyes of a small vision-language model were
# trained on a few English ones. Do the others lie by the same pictures? Forty-two things, each with its own word, French,
# German and Spanish words, another English word, a two-word phrase and a description that does not name it: by layer, the
# share whose own picture is first, and among the first ten, of all the bundled pictures; then what some of them draw.
#
#     python recipes/other_words.py --model gemma-270m --draw "renard" "a red fox" --layer 12
#     python recipes/other_words.py --quick                          the bundled model, English alone, one picture
#
# The bundled model's tokenizer knows its own English words; what it cannot write is left out and counted. Results:
# other-words.csv, other-words.png and drawn.png.

# %%
from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import as_tensors
from nnsight_dream.report import tables
from nnsight_dream.report.figures import draw_panels, label_axis, saved

QUICK = ["--quick"]
KINDS = ("own word", "French", "German", "Spanish", "another word", "phrase", "description")
WORDS = """
fox | renard | Fuchs | zorro | vixen | red fox | a sly animal with a bushy tail
cat | chat | Katze | gato | kitten | house cat | a pet that purrs and catches mice
dog | chien | Hund | perro | puppy | loyal dog | a pet that barks and fetches sticks
horse | cheval | Pferd | caballo | stallion | brown horse | an animal that people ride in races
cow | vache | Kuh | vaca | heifer | milk cow | an animal on a farm that gives milk
pig | cochon | Schwein | cerdo | hog | pink pig | an animal on a farm that rolls in mud
frog | grenouille | Frosch | rana | toad | green frog | a small animal that croaks by the pond
tiger | tigre | - | tigre | tigress | wild tiger | a large cat with black stripes
elephant | éléphant | Elefant | elefante | mammoth | grey elephant | a huge animal with a trunk and tusks
giraffe | girafe | - | jirafa | - | tall giraffe | an animal with a very long neck
octopus | pieuvre | Krake | pulpo | kraken | small octopus | a sea animal with eight arms
snail | escargot | Schnecke | caracol | slug | garden snail | a slow animal that carries its shell
butterfly | papillon | Schmetterling | mariposa | moth | blue butterfly | an insect with large coloured wings
bee | abeille | Biene | abeja | hornet | honey bee | an insect that makes honey
turtle | tortue | Schildkröte | tortuga | tortoise | sea turtle | a slow reptile with a hard shell
owl | hibou | Eule | búho | - | night owl | a bird that hunts at night
duck | canard | Ente | pato | mallard | yellow duck | a bird that swims and quacks
whale | baleine | Wal | ballena | orca | big whale | the largest animal of the sea
apple | pomme | Apfel | manzana | - | red apple | a fruit that keeps the doctor away
strawberry | fraise | Erdbeere | fresa | - | sweet strawberry | a small red fruit with seeds outside
lemon | citron | Zitrone | limón | lime | sour lemon | a sour yellow fruit
banana | - | Banane | plátano | plantain | ripe banana | a long yellow fruit that monkeys like
carrot | carotte | Karotte | zanahoria | - | fresh carrot | an orange root that rabbits like
tomato | tomate | Tomate | tomate | - | ripe tomato | the red fruit that ketchup is made of
bread | pain | Brot | pan | loaf | white bread | what a baker bakes from flour
cheese | fromage | Käse | queso | cheddar | yellow cheese | a food made from milk, with holes in it
mushroom | champignon | Pilz | seta | toadstool | forest mushroom | it grows in the forest and has a cap
tree | arbre | Baum | árbol | oak | green tree | a tall plant with a trunk and leaves
sunflower | tournesol | Sonnenblume | girasol | - | tall sunflower | a tall yellow flower full of seeds
rose | - | - | rosa | - | red rose | a flower with thorns for lovers
house | maison | Haus | casa | cottage | small house | a building where a family lives
bicycle | vélo | Fahrrad | bicicleta | bike | old bicycle | a vehicle with two wheels and pedals
train | - | Zug | tren | locomotive | fast train | it runs on rails from station to station
airplane | avion | Flugzeug | avión | jet | white airplane | a machine that flies people over the ocean
key | clé | Schlüssel | llave | - | door key | it opens a lock
umbrella | parapluie | Regenschirm | paraguas | parasol | open umbrella | it keeps the rain off
book | livre | Buch | libro | novel | thick book | something with many pages to read
guitar | guitare | Gitarre | guitarra | banjo | wooden guitar | an instrument with six strings
sun | soleil | Sonne | sol | sunshine | bright sun | it lights the day
moon | lune | Mond | luna | crescent | full moon | it lights the night
heart | cœur | Herz | corazón | - | red heart | the sign of love
fire | feu | Feuer | fuego | flame | hot fire | it burns and gives warmth
"""


# %% [markdown]
# ## Which picture lies next to a word


# %%
def texts() -> dict[str, dict[str, str]]:
    """By kind, what says each thing; another word that the labels know is left out, too."""
    labels = {name.lower() for c in bundle.concepts() for name in (c.name, *c.aliases)}
    by_kind: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for line in WORDS.strip().splitlines():
        thing, *others = (part.strip() for part in line.split("|"))
        by_kind[KINDS[0]][thing] = thing
        for kind, text in zip(KINDS[1:], others, strict=True):
            if text != "-" and text.lower() not in labels:
                by_kind[kind][thing] = text
    return by_kind


def directions(vlm: nd.VLM, phrases: list[str], layers: list[int]) -> dict[str, list[nd.Direction]]:
    """Those texts that the model's tokenizer can write, with their concept vectors by layer."""
    vectors = {}
    for text in phrases:
        try:
            vectors[text] = nd.concept(vlm, text, layers)
        except ValueError as error:
            print(f"left out: {str(error).splitlines()[0]}", file=sys.stderr)
    return vectors


def ranks(vlm: nd.VLM, kinds: dict[str, dict[str, str]], layers: list[int], batch: int) -> list[dict[str, Any]]:
    """By kind and layer, how often a text's own picture is near to it, among all bundled pictures."""
    samples = bundle.pictures()
    pictures, places = torch.cat(as_tensors([p.image for p in samples], "pictures")), [p.name for p in samples]
    sites = [vlm.site(layer) for layer in layers]
    seen: dict[nd.Site, list[torch.Tensor]] = {site: [] for site in sites}
    for part in pictures.split(batch):
        with torch.no_grad():
            for site, patches in nd.read_pictures(vlm, part.to(vlm.device), sites).items():
                seen[site].append(patches.float().mean(1).cpu())
    of = directions(vlm, list(dict.fromkeys(text for by_thing in kinds.values() for text in by_thing.values())), layers)
    rows = []
    for i, site in enumerate(sites):
        means = torch.cat(seen[site])
        means = torch.nn.functional.normalize(means - means.mean(0), dim=1)
        base = torch.stack([of[text][i].vector for text in kinds[KINDS[0]].values() if text in of]).mean(0).cpu()
        for kind, by_thing in kinds.items():
            mine = {thing: text for thing, text in by_thing.items() if text in of}
            if not mine:
                continue
            vectors = torch.stack([of[text][i].vector.cpu() for text in mine.values()])
            cosines = torch.nn.functional.normalize(vectors - base, dim=1) @ means.T
            own = torch.tensor([places.index(thing) for thing in mine])
            rank = (cosines > cosines.gather(1, own[:, None])).sum(1) + 1
            first, ten = int((rank == 1).sum()), int((rank <= 10).sum())
            low, high = nd.wilson(ten, len(mine))
            row: dict[str, Any] = dict(kind=kind, layer=site.layer, texts=len(mine), first=first / len(mine))
            row |= {"ten": ten / len(mine), "ten low": low, "ten high": high, "ten chance": 10 / len(places)}
            rows.append(row | {"median rank": float(rank.double().median())})
    return rows


# %% [markdown]
# ## All of it


# %%
def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """The share among the first ten, by layer, a line for each kind of text."""
    drawn, (axis,) = draw_panels(1, 1)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        axis.plot([r["layer"] for r in mine], [100 * r["ten"] for r in mine], marker="o", markersize=3, label=kind)
    axis.axhline(100 * rows[0]["ten chance"], color="grey", linestyle="--", linewidth=1, label="chance")
    label_axis(axis, "own picture among the first ten, %", size=6)
    saved(drawn, path)


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Words, phrases and languages that no label used, by a model's pictures."
    )
    parser.add_argument("--model", default="demo", help="'demo', 'gemma-270m', a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--layers", type=int, nargs="+", help="from 1; all by default")
    parser.add_argument("--draw", nargs="*", default=[], metavar="TEXT", help="draw these, too")
    parser.add_argument("--layer", type=int, help="where they are drawn (default: the best for other words)")
    parser.add_argument("--steps", type=int, help="of each climb (default: the preset's)")
    parser.add_argument("--views", type=int, help="of a picture in each step (default: the preset's)")
    parser.add_argument("--batch", type=int, default=32, help="pictures in a pass")
    parser.add_argument("--folder", type=option_path, default=Path("other-words"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="English alone, two layers, one picture of twelve steps")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    args.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message="the demo model was never shown")  # that is what is asked here
    vlm = nd.load(args.model, device=args.device)
    layers = args.layers or ([1, vlm.layers] if args.quick else list(range(1, vlm.layers + 1)))
    kinds = {k: v for k, v in texts().items() if not args.quick or k in ("own word", "phrase")}
    rows = ranks(vlm, kinds, layers, args.batch)
    tables.write_csv(rows, args.folder / "other-words.csv")
    print(tables.to_markdown(rows))
    figure(rows, args.folder / "other-words.png")
    draw = args.draw or (["red fox"] if args.quick else [])
    if draw:
        best = max((r for r in rows if r["kind"] != KINDS[0]), key=lambda r: r["ten"])
        layer = args.layer or best["layer"]
        steps = 12 if args.quick else args.steps
        change: dict[str, Any] = {k: v for k, v in (("steps", steps), ("batch", args.views)) if v}
        prototypes = [nd.synthesize(vlm, nd.concept(vlm, text, layer), **change) for text in draw]
        nd.Prototypes(prototypes).grid(columns=min(6, len(prototypes)), side=128).save(args.folder / "drawn.png")
    print(f"\nresults are in {args.folder}")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
