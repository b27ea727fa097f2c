"""Atlases made of features and directions: resumed, judged, leading to cards; by the library and the command line."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import saes
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.atlas import make
from nnsight_dream.cards import page as card_page
from nnsight_dream.cards.card import Material
from nnsight_dream.cards.make import make_cards
from nnsight_dream.sae import reference as reference_module
from nnsight_dream.sae.responses import responses
from nnsight_dream.sweeps.aims import jobs_of_aims
from nnsight_dream.sweeps.store import Store

FEW = nd.Settings(steps=2, batch=1, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),))
WORDS = ("octopus", "fox", "a red fish")


def noise(count: int, side: int = 112) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(autouse=True, scope="module")
def references() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_module, "reference_pictures", lambda: tuple(noise(6, 28)))
        yield


@pytest.fixture(scope="module")
def sae() -> Any:
    return saes.on_neuronpedia()


@pytest.fixture(scope="module")
def material() -> Material:
    return Material(WORDS, tuple(noise(len(WORDS))), WORDS, {w: "thing" for w in WORDS})


def test_live_features_are_drawn_and_told(tiny_vlm: nd.VLM, sae: Any, material: Material, tmp_path: Path) -> None:
    made = nd.atlas_of_sae(
        tiny_vlm,
        sae,
        tmp_path,
        material=material,
        most=12,
        judge=nd.DemoExaminer(),
        settings=FEW,
        tile=32,
        progress=False,
    )
    found = responses(tiny_vlm, sae, nd.feature(sae, 0).site(tiny_vlm), WORDS, material.pictures, WORDS)
    live = [n for n in range(40) if (found.by_word[:, n] > 0).any() or (found.by_picture[:, n] > 0).any()]
    told = chromium.data_of(made.index)
    assert told["numbers"] == [live[i * len(live) // 12] for i in range(12)]
    for i, number in enumerate(told["numbers"]):
        assert told["rates"][i] == pytest.approx(float((found.by_picture[:, number] > 0).float().mean()), abs=1e-5)
        words = [told["vocabulary"][n] for n in told["words"][i]]
        assert words == [word for word, _ in found.top_words(number, 5)]
        assert told["links"][i] == f"https://neuronpedia.org/tiny/2-res/{number}"
        both = bool(words), bool(told["rates"][i])
        assert told["modalities"][i] == {(True, False): 1, (False, True): 2, (True, True): 3, (False, False): 4}[both]
        assert (told["verdicts"][i] == 0) == (told["answers"][i] == "")
    rows = sae.W_dec.detach()[told["numbers"]]
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert told["near"][0] == (unit @ unit[0]).topk(7).indices[1:].tolist()
    assert Image.open(tmp_path / "sheets" / "32-0-0.webp").width == 32 * told["columns"]
    assert len(list(Store(tmp_path / "sweep").keys())) == 12


def test_it_goes_on_where_it_stopped_with_the_same_pictures(
    tiny_vlm: nd.VLM, sae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, one_by_one = nd.feature(sae, [3, 5, 8, 9]), FEW.but(at_once=1)
    whole = make.make_atlas(tiny_vlm, features, tmp_path / "whole", settings=one_by_one, tile=32, progress=False)
    from nnsight_dream.sweeps import sweep

    climb, count = sweep.climb_pairs, []

    def stops(*given: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return climb(*given)

    monkeypatch.setattr(sweep, "climb_pairs", stops)
    with pytest.raises(KeyboardInterrupt, match="it goes on"):
        make.make_atlas(tiny_vlm, features, tmp_path / "cut", settings=one_by_one, tile=32, progress=False)
    assert not (tmp_path / "cut" / "index.html").exists()
    again = make.make_atlas(tiny_vlm, features, tmp_path / "cut", settings=one_by_one, tile=32, progress=False)
    assert len(count) == 5  # two, the one that was cut, and the two that were left
    for name in ("32-0-0.webp", "8-0-0.webp"):
        assert (tmp_path / "whole/sheets" / name).read_bytes() == (tmp_path / "cut/sheets" / name).read_bytes()
    assert (again.cells == whole.cells).all()


def test_directions_of_one_label_are_told_apart_by_their_content(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    a, b = (
        nd.from_tensor(tiny_vlm, torch.randn(32, generator=torch.Generator().manual_seed(i)), 2, label="x")
        for i in (0, 1)
    )
    jobs = jobs_of_aims(tiny_vlm, [a, b, nd.from_tensor(tiny_vlm, a.vector, 2, label="x")])
    assert jobs[0] == jobs[2] != jobs[1]
    assert len({job.key() for job in jobs}) == 2
    done = nd.sweep(tiny_vlm, jobs, tmp_path, settings=FEW, progress=False)
    assert done.made == 2
    alone = nd.synthesize(tiny_vlm, b, settings=FEW, progress=False)
    there = next(e.prototype() for e in done.store.entries() if e.key.endswith(jobs_key(tiny_vlm, jobs[1], done)))
    assert there.image.tobytes() == alone.image.tobytes()


def jobs_key(vlm: nd.VLM, job: Any, done: Any) -> str:
    from nnsight_dream.sweeps.sweep import plan

    return next(k for c in plan(vlm, [job], settings=FEW).chunks for k in c.keys)


def test_jobs_of_features_travel_to_workers(tiny_vlm: nd.VLM, sae: Any) -> None:
    """As Ray sends them: pickled, climbed elsewhere to the same bits."""
    from nnsight_dream.sweeps.sweep import plan, run

    (chunk,) = plan(tiny_vlm, jobs_of_aims(tiny_vlm, nd.feature(sae, [3, 5])), settings=FEW).chunks
    there = pickle.loads(pickle.dumps(chunk))
    assert there.jobs == chunk.jobs
    assert [job.key(**there.of) for job in there.jobs] == list(chunk.keys)
    here, elsewhere = run(tiny_vlm, chunk), run(tiny_vlm, there)
    assert [p.image.tobytes() for p in here] == [p.image.tobytes() for p in elsewhere]


def test_one_that_fails_is_left_out_and_told(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    good = [nd.from_tensor(tiny_vlm, torch.eye(32)[i], 2, label=f"axis {i}") for i in range(3)]
    zero = nd.from_tensor(tiny_vlm, torch.zeros(32), 2, label="nowhere")
    made = make.make_atlas(tiny_vlm, [*good, zero], tmp_path, settings=FEW, progress=False)
    assert [label for label, _ in made.failed] == ["nowhere"]
    assert chromium.data_of(made.index)["names"] == ["axis 0", "axis 1", "axis 2"]


def test_what_cannot_be_one_map_is_refused(tiny_vlm: nd.VLM, sae: Any, tmp_path: Path) -> None:
    axis = nd.from_tensor(tiny_vlm, torch.eye(32)[0], 2)
    with pytest.raises(ValueError, match="at least one, and all of one width"):
        make.make_atlas(tiny_vlm, [], tmp_path)
    with pytest.raises(ValueError, match="2 tiles for 1 directions"):
        make.make_atlas(tiny_vlm, [axis], tmp_path, tiles=[nd.atlas.Tile("a"), nd.atlas.Tile("b")])
    with pytest.raises(FileNotFoundError, match=r"no index\.html"):
        make.atlas_of_sae(tiny_vlm, sae, tmp_path, features=[1], cards=tmp_path / "cards", settings=FEW, progress=False)


@chromium.needed
def test_a_click_leads_to_the_card(tiny_vlm: nd.VLM, sae: Any, material: Material, tmp_path: Path) -> None:
    deck = make_cards(tiny_vlm, sae, [3, 8], tmp_path / "cards of it", material=material, settings=FEW)
    card_page(deck.cards, tmp_path / "cards of it" / "index.html")
    made = nd.atlas_of_sae(
        tiny_vlm, sae, tmp_path / "atlas", features=[3, 5, 8], material=material, cards=tmp_path / "cards of it",
        settings=FEW, progress=False,
    )  # fmt: skip
    assert chromium.data_of(made.index)["cards"] == [
        "../cards%20of%20it/index.html#feature-3",
        "",
        "../cards%20of%20it/index.html#feature-8",
    ]
    with chromium.opened(made.index, tmp_path) as tab:
        tab.run("choose(2)")
        address = tab.run("return panel.querySelector('dd a[href*=card]').href")
        tab.call("Page.navigate", url=address)
        limit = time.monotonic() + 60
        while not tab.run("return document.readyState === 'complete' && !!document.getElementById('detail')"):
            assert time.monotonic() < limit
        assert "feature 8" in tab.run(
            "return document.getElementById('detail').open && document.getElementById('name').textContent"
        )


def test_by_the_command_line(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = tmp_path / "words.txt"
    words.write_text("fox\n\nbear\nfox\npanda\n", encoding="utf-8")
    asked = [
        "atlas",
        "--layer",
        "1",
        "--word",
        f"@{words}",
        "--steps",
        "1",
        "--tile",
        "32",
        "--model",
        str(tiny_folder),
    ]
    asked += ["--out", str(tmp_path / "map")]
    assert cli.main(asked) == 0
    assert "3 pictures in" in capsys.readouterr().out
    assert chromium.data_of(tmp_path / "map" / "index.html")["names"] == ["fox", "bear", "panda"]
    for wrong, said in (
        (["--most", "0"], "--most"),
        (["--tile", "4"], "--tile"),
        (["--layer", "1", "--judge"], "are for features"),
        (["--word", "@nowhere.txt"], "no file nowhere.txt"),
    ):
        assert cli.main(["atlas", *wrong, "--out", str(tmp_path / "x")]) == 1
        assert said in capsys.readouterr().err


def test_it_says_which_pictures_reach_real_ones(tmp_path: Path) -> None:
    demo_vlm = nd.load("demo")  # its own: this module's reference pictures would stay with the one that all tests share
    aims = [nd.concept(demo_vlm, "fox", layer=1), nd.feature("demo", 1466), nd.concept(demo_vlm, "grey fox", layer=1)]
    made = nd.make_atlas(demo_vlm, aims[:1] + aims[2:], tmp_path / "words", settings=FEW, progress=False)
    told = chromium.data_of(made.index)
    assert told["reached"] == [2, 0]  # two steps reach nothing; no bundled picture shows a grey fox
    assert "did not reach real pictures" in told["reach"][0]
    assert told["reach"][1] == ""
    made = nd.make_atlas(demo_vlm, aims[1:2], tmp_path / "features", settings=FEW, progress=False)
    told = chromium.data_of(made.index)
    (entry,) = Store(tmp_path / "features" / "sweep").entries()
    expected = nd.reach(demo_vlm, entry.prototype(), towards=aims[1])
    assert (entry.reach.score, entry.reach.best_own) == pytest.approx((expected.score, expected.best_own))
    assert (told["reached"], told["reach"]) == ([2], [str(entry.reach)])
