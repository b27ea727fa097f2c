"""One check each for numbers, paths, lists, seeds and layers: what they take, and what they say."""

from __future__ import annotations

import json
import os
from fractions import Fraction

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream import arguments
from nnsight_dream.alignment import cosines as alignment
from nnsight_dream.alignment import encoders
from nnsight_dream.demo import bundle
from nnsight_dream.judges import examine as judging
from nnsight_dream.models import checked
from nnsight_dream.report import figures, pages, raters, tables
from nnsight_dream.sweeps.sweep import plan

WHOLE = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.int16)]
NOT_WHOLE = [
    True,
    np.True_,
    torch.tensor(True),
    3.0,
    np.float32(3),
    torch.tensor(3.0),
    "3",
    None,
    [3],
    torch.tensor([3]),
]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_are_taken_in_every_guise_and_become_an_int(value):
    found = arguments.whole(value, "n", 1, 5)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^n=.*a whole number from 1 to 5 is needed"):
        arguments.whole(value, "n", 1, 5)


@pytest.mark.parametrize("value", [0, 6, np.int64(-1), 2**80])
def test_a_whole_number_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"from 1 to 5"):
        arguments.whole(value, "n", 1, 5)


def test_the_advice_for_a_float_or_a_text_works():
    for wrong in (3.0, "3", np.float32(3)):
        with pytest.raises(ValueError, match=r"mend: n=3$"):
            arguments.whole(wrong, "n", 1)
    with pytest.raises(ValueError, match=r"is needed$"):
        arguments.whole(0.0, "n", 1)  # no advice that would fail again


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)], ids=repr)
def test_real_numbers_are_taken_in_every_guise(value):
    found = arguments.real(value, "x", above=0, most=1)
    assert found == 0.5
    assert type(found) is float


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), torch.tensor(float("nan")), True, "0.5", None, 1j, [0.5], 0, 1.5, 10**400],
    ids=repr,
)
def test_what_is_no_finite_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^x=.*: a number above 0 and of at most 1 is needed, such as 0.5$"):
        arguments.real(value, "x", above=0, most=1, such_as=0.5)


def test_paths(tmp_path):
    assert arguments.path(str(tmp_path)) == arguments.path(tmp_path) == tmp_path
    for wrong, kind in (
        ("", ValueError),
        ("  ", ValueError),
        ("a\0b", ValueError),
        (3, TypeError),
        (None, TypeError),
        (b"x", TypeError),
    ):
        with pytest.raises(kind, match=r"^folder="):
            arguments.folder(wrong)


def test_folders_and_files_are_not_taken_for_each_other(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for place in (file, file / "below" / "it", tmp_path / "dangling"):
        with pytest.raises(NotADirectoryError, match=r"a folder is needed"):
            arguments.folder(place)
    assert arguments.folder(tmp_path / "new" / "one") == tmp_path / "new" / "one"
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match=r"no such folder"):
        arguments.folder(tmp_path / "new", must_exist=True)
    assert arguments.file(file) == file
    with pytest.raises(IsADirectoryError, match=r"a file is needed"):
        arguments.file(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        arguments.file(tmp_path / "new")
    with pytest.raises(OSError, match=r"^folder=.{1,100}: File name too long; give another"):
        arguments.folder("x" * 5000)
    assert arguments.folder(os.fspath(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "value", [[0, 1], (0, 1), range(2), np.arange(2), torch.arange(2), iter([0, 1]), {0: 1, 1: 2}.keys()], ids=tiny.name
)
def test_several_seeds_and_layers_in_every_guise(value):
    assert arguments.seeds(value) == ([0, 1], False)


@pytest.mark.parametrize(
    "value",
    ["0", "", b"0", {0}, {0: 1}, None, 0.5, True, [True], [[0]], [], -1, 2**63, [2**63], torch.eye(2)],
    ids=repr,
)
def test_what_is_no_seed_is_refused(value):
    with pytest.raises((ValueError, TypeError), match=r"^seed"):
        arguments.seeds(value)


@pytest.mark.parametrize("value", [[1, 4], (1, 4), range(1, 5, 3), np.array([1, 4]), torch.tensor([1, 4])], ids=repr)
def test_several_layers_in_every_guise(value):
    found = checked.layers(value)
    assert found == ([1, 4], False)
    assert all(type(n) is int for n in found[0])


def test_one_layer_in_every_guise():
    site = nd.Site(4)
    for value in (4, np.int64(4), torch.tensor(4), np.array(4)):
        assert checked.layers(value) == ([4], True)
    assert checked.layers("14") == (["14"], True)
    assert checked.layers(site) == ([site], True)
    assert checked.layers([site, "blocks.3.hook_resid_post"]) == ([site, "blocks.3.hook_resid_post"], False)


@pytest.mark.parametrize("value", ["1,4", "1, 4", "1 4", "[1, 4]", "1-4", "1:4", ["1,4"]])
def test_numbers_in_one_text_are_no_layer_and_the_advice_works(value):
    with pytest.raises(ValueError, match=r"layer=\[1, 4\]$"):
        checked.layers(value)
    assert checked.layers([1, 4]) == ([1, 4], False)


@pytest.mark.parametrize("value", [None, 4.0, True, b"4", {4}, {4: 1}, [], [4.0], [None], [[4]]], ids=repr)
def test_what_is_no_layer_is_refused(value):
    with pytest.raises((ValueError, TypeError), match=r"^layer"):
        checked.layers(value)


def test_texts_and_items():
    assert arguments.texts(np.array(["a", "b"]), "words") == (["a", "b"], False)
    for wrong in (None, 3, b"a", {"a"}, {"a": 1}, [], [""], [None], [["a"]], " "):
        with pytest.raises((ValueError, TypeError), match=r"^words"):
            arguments.texts(wrong, "words")
    jobs = [nd.Job("fox"), nd.Job("owl")]
    assert arguments.several(jobs[0], nd.Job, "jobs", "jobs are") == ([jobs[0]], True)
    assert arguments.several(iter(jobs), nd.Job, "jobs", "jobs are") == (jobs, False)
    with pytest.raises(TypeError, match=r"^jobs\[0\]='fox': a Job, or a list of them, is needed, not a text$"):
        arguments.several(["fox"], nd.Job, "jobs", "a Job, or a list of them, is")


def test_messages_stay_short():
    for check in (arguments.whole, arguments.real, arguments.path, arguments.seeds, checked.layers, arguments.texts):
        for value in (["x" * 100_000], torch.zeros(1000, 3), {"x" * 1000: 1}):
            with pytest.raises((ValueError, TypeError)) as caught:
                check(value, "name")
                raise ValueError  # a path may be long, a text too
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "concepts",
    [
        ["cat", " "],
        "cat",
        ("cat", "animal", "cat"),
        ("cat", "animal", ""),
        [("fox", None, "")],
        [("fox",)],
        {"fox"},
        None,
        [("", "a", "")],
    ],
)
def test_concepts_of_another_form_are_refused_with_the_form_of_concepts_and_layers(concepts):
    with pytest.raises(TypeError, match=r"\('octopus', 'animal', ''\).*layers= such as \[1, 4\]"):
        nd.jobs_of(concepts, "14")
    assert len(nd.jobs_of([("octopus", "animal", "")], [1, 4])) == 2


def test_words_alone_are_concepts():
    assert nd.jobs_of(["cat", ("dog", "", "")], [1]) == nd.jobs_of([("cat", "", ""), ("dog", "", "")], [1])


def test_a_text_of_digits_is_no_list_of_layers():
    with pytest.raises(ValueError, match=r"layers=\[14\]"):
        nd.jobs_of([("fox", "animal", "")], "14")


def test_one_layer_seed_and_pooling_stand_for_a_list_and_numbers_come_in_any_guise():
    fox = [("fox", "animal", "")]
    expected = nd.jobs_of(fox, [4], seeds=[3], poolings=["mean"])
    assert nd.jobs_of(fox, np.int64(4), seeds=torch.tensor(3), poolings="mean") == expected
    assert nd.jobs_of(iter(fox), np.array([4]), seeds=torch.tensor([3]), poolings=("mean",)) == expected
    assert nd.Job("fox", "animal", np.int64(4), torch.tensor(3), "", "", "mean").key() == expected[0].key()


@pytest.mark.parametrize(
    "wrong",
    [dict(category=None), dict(prompt=None), dict(control=None), dict(pooling=None), dict(pooling=["mean"]), dict(seed=True), dict(seed="0"), dict(seed=2**63),
     dict(layer=None), dict(layer=True), dict(layer=[1, 4]), dict(layer="1,4"), dict(layer=""), dict(category=b"a"), dict(concept="a\udc80"), dict(category="\ud83d")],
    ids=str,
)  # fmt: skip
def test_a_job_of_a_wrong_type_is_refused_where_it_is_made_and_where_it_is_read(wrong, tmp_path):
    ((field, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{field}="):
        nd.Job(**{"concept": "fox", **wrong})
    if field == "seed" and isinstance(value, bool):
        record = tmp_path / "jobs" / "fox" / "job.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"concept": "fox", **wrong}))
        with pytest.raises(ValueError, match=rf"job.json is not a job's record: {field}="):
            list(nd.Store(tmp_path).entries())


@pytest.mark.parametrize("settings", [nd.Settings, 3, {"steps": 1}, [nd.Settings()]], ids=tiny.name)
def test_settings_that_are_none_are_refused_before_anything_is_loaded_or_made(settings, tmp_path):
    with pytest.raises(TypeError, match=r"Settings, or a function from a layer to Settings, is needed"):
        plan(nd.load("demo"), [nd.Job("fox")], settings=settings)


def test_a_store_is_a_folder(tmp_path):
    for wrong in ("", None, 3, nd.Store(tmp_path)):
        with pytest.raises((TypeError, ValueError), match=r"^folder="):
            nd.Store(wrong)
    with pytest.raises(TypeError, match=r"jobs\[0\]='fox': a Job, or a list of them"):
        nd.sweep("demo", ["fox"], tmp_path)


def test_numbers_of_canvases_and_augmentations_come_in_any_guise_and_become_plain():
    assert nd.Pixels(np.int64(32)) == nd.Pixels(torch.tensor(32)) == nd.Pixels(32)
    ladder = nd.MultiResolution(np.int64(64), resolutions=np.array([8, 64]), exponent=torch.tensor(0.5))
    assert ladder == nd.MultiResolution(64, resolutions=(8, 64), exponent=0.5)
    assert nd.Shift(pixels=np.int64(3)) == nd.Shift(pixels=3)
    assert nd.Scale(np.float64(0.9), torch.tensor(1.5)) == nd.Scale(0.9, 1.5)
    assert repr(nd.Rotate(np.float64(3.0))) == repr(nd.Rotate(3.0))
    wrong = [True, "3", None, [3], torch.ones(2), 1j, float("nan"), object()]
    for make in (
        nd.Pixels,
        nd.Fourier,
        nd.Noise,
        nd.Rotate,
        lambda v: nd.Scale(v, 2.0),
        lambda v: nd.Fourier(32, decay=v),
    ):
        for value in wrong:
            with pytest.raises(ValueError, match=r"given; allowed (is|are) .*mend"):
                make(value)
    for make in (
        lambda v: nd.Shift(pixels=v),
        lambda v: nd.MultiResolution(32, resolutions=v),
        lambda v: nd.MACO(32, magnitude=v),
    ):
        for value in (True, "3", object(), 1j, [float("nan")]):
            with pytest.raises(ValueError, match=r"given; allowed (is|are) .*mend"):
                make(value)


def test_directions_of_wrong_parts_are_refused_in_our_own_words(tmp_path):
    vlm = nd.load("demo")
    fox = nd.from_tensor(vlm, torch.ones(vlm.width), np.int64(4), label="fox")
    assert (fox * np.float32(0.5)).label == (fox * torch.tensor(0.5)).label == "0.5 fox"
    for wrong in ("x", None, {"a": 1}, object(), True, 1j * torch.ones(vlm.width), [[1], [1, 2]]):
        with pytest.raises((TypeError, ValueError), match=r"tensor|\(d,\)"):
            nd.from_tensor(vlm, wrong, 4)
    for field in ("site", "label", "model", "provenance"):
        with pytest.raises(TypeError, match=f"^Direction: {field}=3: .* is needed"):
            nd.Direction(**{"vector": fox.vector, "site": fox.site, "label": "a", "model": "m", field: 3})
    with pytest.raises(ValueError, match=r"a direction's factor=nan"):
        fox * float("nan")
    with pytest.raises(ZeroDivisionError, match=r"'fox' cannot be divided by 0"):
        fox / 0
    with pytest.raises(TypeError, match=r"two Directions|compares two Directions"):
        nd.cosine(fox, "fox")
    for call in (lambda: fox.save(""), lambda: nd.Direction.load("")):
        with pytest.raises(ValueError, match=r"^path=''"):
            call()
    with pytest.raises(IsADirectoryError, match=r"give a file in it"):
        fox.save(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"is a folder; a file is needed"):
        nd.Direction.load(tmp_path)


@pytest.mark.parametrize("wrong", ["octopus", nd.VLM, None, nd.Site(4)], ids=str)
def test_what_is_no_model_is_refused_where_a_model_is_needed(wrong):
    with pytest.raises(
        TypeError, match=r"vlm= is a model that nd.load gave; got .*nd.load.*concept takes \(vlm, words"
    ):
        nd.concept(wrong, "fox", 4)
    with pytest.raises(TypeError, match=r"vlm= is a model that nd.load gave"):
        nd.from_tensor(wrong, torch.ones(3), 4)


def test_sites_are_typed_and_take_numbers_in_any_guise():
    assert nd.Site(np.int64(4), tokens=np.array([0, 3])) == nd.Site(4, tokens=(0, 3))
    assert hash(nd.Site(torch.tensor(4), tokens=torch.tensor([0, 3]))) == hash(nd.Site(4, tokens=(0, 3)))
    for wrong in (
        dict(layer="a"),
        dict(layer=None),
        dict(layer=True),
        dict(layer=4, kind=3),
    ):
        with pytest.raises(TypeError, match=r"^Site\(layer="):
            nd.Site(**wrong)
    vlm = nd.load("demo")
    for where in (np.int64(4), torch.tensor(4), "4"):
        assert vlm.site(where) == nd.Site(4)
    for kind in (3, ["mlp_out"], np.ones(2)):
        with pytest.raises(TypeError, match=r"^kind=.*the name of a kind is needed: resid_pre"):
            vlm.site(4, kind)
    with pytest.raises(TypeError, match=r"a name or a Site; got several"):
        vlm.site([1, 4])


@pytest.mark.parametrize("wrong", [nd.DemoJudge, nd.DemoExaminer, "demo", None, object()], ids=tiny.name)
def test_what_is_no_examiner_is_refused_before_anything_is_asked(wrong, tmp_path):
    (tmp_path / "jobs").mkdir()
    for call in (nd.examine, judging.plan_calls):
        with pytest.raises(TypeError, match=r"^judge=.*(an examiner is needed|is a class; make a judge of it)"):
            call(tmp_path, wrong)


def test_a_naming_judge_becomes_an_examiner_as_the_message_advises(tmp_path):
    (tmp_path / "jobs").mkdir()
    judge = nd.DemoJudge()
    with pytest.raises(TypeError, match=r"becomes one with nd.DemoExaminer\(judge\)"):
        nd.examine(tmp_path, judge)
    assert nd.examine(tmp_path, nd.DemoExaminer(judge), progress=False).asked == 0


def test_stores_and_rows_are_not_taken_for_each_other(tmp_path):
    (tmp_path / "jobs").mkdir()
    store = nd.Store(tmp_path)
    assert nd.results(str(tmp_path)) == nd.results(store) == []
    with pytest.raises(TypeError, match=r"^store= is a Store or its folder; got .*a sweep's is .store"):
        nd.results(nd.Swept(store))
    for call in (
        lambda: nd.results([]),
        lambda: pages.page(3, tmp_path / "x.html"),
        lambda: raters.read_ratings(None, tmp_path),
    ):
        with pytest.raises(TypeError, match=r"^store= is a Store or its folder"):
            call()
    for call in (
        nd.rates,
        tables.seed_agreement,
        tables.to_markdown,
        lambda r: tables.write_csv(r, tmp_path / "x.csv"),
        lambda r: figures.recognition(r, tmp_path / "x"),
    ):
        for wrong in (store, str(tmp_path), {"layer": 1}, 3, None, [3]):
            with pytest.raises(TypeError, match=r"^rows(=|\[0\]=)"):
                call(wrong)
    assert not (tmp_path / "x.csv").exists()


def test_what_is_climbed_towards_takes_numbers_in_any_guise_and_refuses_the_rest():
    assert nd.Attention(torch.tensor(0.5), (np.float64(2), 16.0)) == nd.Attention(0.5, (2.0, 16.0))
    assert nd.NaturalNoise(np.int64(4), torch.tensor(1)) == nd.NaturalNoise(4, 1)
    assert nd.TotalVariation(np.float64(0.5)) == nd.TotalVariation(0.5)
    picture = Image.new("RGB", (4, 4))
    assert nd.Pictures(picture) == nd.Pictures([picture])  # one stands for a list of one
    wrong = [None, "1", True, [1], torch.ones(3), float("nan"), object()]
    for make in (
        nd.Attention,
        nd.TotalVariation,
        nd.NaturalNoise,
        lambda v: nd.Attention(sigma=v),
        lambda v: nd.NaturalNoise(seed=v),
    ):
        for value in wrong:
            with pytest.raises(ValueError, match=r"(is|are) needed"):
                make(value)
    for value in (None, 3, [3], {"a": picture}):
        with pytest.raises(TypeError, match=r"^images(\[0\])?=.*a PIL image, or a list of them, is needed"):
            nd.Pictures(value)


def test_synthesize_refuses_what_is_none_of_its_arguments_in_our_own_words():
    vlm = nd.load("demo")
    fox = nd.from_tensor(vlm, torch.ones(vlm.width), 4, label="fox")
    picture = Image.new("RGB", (4, 4))
    for wrong in ("octopus", None, vlm.hf, nd.VLM):
        with pytest.raises(TypeError, match=r"vlm= is a model that nd.load gave.*synthesize takes"):
            nd.synthesize(wrong, fox)
        with pytest.raises(TypeError, match=r"vlm= is a model that nd.load gave.*submit takes"):
            nd.submit(wrong, fox)
    for wrong in ("fox", None, 3, ["fox"], picture, nd.Site(4), {"a": fox}):
        with pytest.raises(TypeError, match=r"a Direction(,| or) |list\(directions.values"):
            nd.synthesize(vlm, wrong, progress=False)
    for wrong in (nd.Settings, 3, {"steps": 1}):
        with pytest.raises(TypeError, match=r"settings=.*Settings"):
            nd.synthesize(vlm, fox, settings=wrong, progress=False)
    for wrong in ("0", 0.5, True, None, [-1], []):
        with pytest.raises(ValueError, match=r"^seed"):
            nd.synthesize(vlm, fox, seed=wrong, progress=False)


def test_a_path_that_is_none_is_refused_by_every_door(tmp_path):
    from nnsight_dream.alignment import pairs
    from nnsight_dream.cards import card as cards

    doors = [
        nd.Prototype.load,
        nd.Prototypes().save,
        nd.Store,
        nd.DemoJudge,
        cards.cards_of,
        pairs.from_folder,
        pairs.from_table,
    ]
    for door in doors:
        with pytest.raises(ValueError, match=r"^(folder|path)=''"):
            door("")
        if door is not nd.DemoJudge:
            with pytest.raises(TypeError, match=r"^(folder|path)= is a path"):
                door(None)


def test_models_take_numbers_in_any_guise(tiny_folder):
    vlm = nd.load(tiny_folder, up_to_layer=np.int64(2), image_size=torch.tensor(112), first_layer=np.int64(1))
    assert vlm.layers == 2
    assert type(vlm.config.get_text_config().num_hidden_layers) is int
    for wrong in (
        dict(up_to_layer=2.0),
        dict(up_to_layer="2"),
        dict(image_size="112"),
        dict(image_size=112.0),
        dict(first_layer=None),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{next(iter(wrong))}="):
            nd.load(tiny_folder, **wrong)


def test_readings_say_what_they_read():
    vlm = nd.load("demo")
    picture = torch.rand(1, 3, 64, 64)
    assert (
        list(nd.read_pictures(vlm, picture, 4)) == list(nd.read_pictures(vlm, picture, np.array([4]))) == [nd.Site(4)]
    )
    ones = torch.ones(1, 3, dtype=torch.long)
    calls = [
        (TypeError, r"^pictures=", lambda: nd.read_pictures(vlm, Image.new("RGB", (4, 4)), [4])),
        (TypeError, r"^sites=", lambda: nd.read_pictures(vlm, picture, None)),
        (TypeError, r"^ids=", lambda: nd.read_text(vlm, [1, 2], ones, [4])),
        (TypeError, r"^mask=", lambda: nd.read_text(vlm, ones, None, [4])),
        (TypeError, r"^vlm= is a model", lambda: nd.check("demo")),
        (TypeError, r"^pictures=", lambda: alignment.similarities(vlm, [picture])),
        (TypeError, r"^words=", lambda: alignment.similarities(vlm, {"fox": [picture[0]]}, [4], words=3)),
        (TypeError, r"^names\[0\]=3", lambda: bundle.pictures([3])),
        (ValueError, r"^name=None", lambda: nd.Verdict(("fox",), (1.0,)).rank(None)),
        (ValueError, r"is no key of a job", lambda: nd.Store("x").has(None)),
        (TypeError, r"^ray=", lambda: nd.sweep(vlm, nd.Job("fox"), nd.Store("x"), ray="auto")),
    ]  # fmt: skip
    for error, words, call in calls:
        with pytest.raises(error, match=words):
            call()


def test_judges_encoders_and_tables_say_what_they_need(tmp_path):
    vlm = nd.load("demo")
    words, pictures = encoders.text_side(vlm), encoders.image_side(vlm)
    read = words.read(np.array(["fox"]), np.int64(1))
    assert torch.equal(read[1], words.read(["fox"], [1])[1])
    calls = [
        (ValueError, r"^samples='2': at least 1", lambda: nd.OpenAIJudge(api_key="k" * 20, samples="2")),
        (ValueError, r"^samples=2.5: a whole number", lambda: nd.OpenAIJudge(api_key="k" * 20, samples=2.5)),
        (TypeError, r"^prices=", lambda: nd.OpenAIJudge(api_key="k" * 20, prices="cheap")),
        (ValueError, r"^samples='2', most=64", lambda: nd.VLMJudge(vlm, samples="2")),
        (TypeError, r"^grader=", lambda: nd.VLMJudge(vlm, grader="words")),
        (ValueError, r"^template=None", lambda: nd.ZeroShotJudge(None, names=["a"], template=None)),
        (TypeError, r"^names=", lambda: nd.ZeroShotJudge(None, names="fox")),
        (TypeError, r"^judge=", lambda: nd.DemoExaminer(nd.DemoJudge)),
        (TypeError, r"^layers=", lambda: words.read(["fox"], "1")),
        (TypeError, r"^items='fox'", lambda: words.read("fox", [1])),
        (TypeError, r"^items=", lambda: pictures.read(None, [1])),
        (ValueError, r"^tokens=array", lambda: encoders.text_side(vlm, np.array(3))),
        (TypeError, r"^columns\[0\]=3", lambda: tables.to_markdown([{"a": 1}], [3])),
        (TypeError, r"^stem= is a path", lambda: figures.recognition(ROWS, None)),
        (ValueError, r"^title=3", lambda: pages.page(nd.Store(tmp_path), tmp_path / "x.html", title=3)),
        (OSError, r"^path=.*File name too long", lambda: tables.write_csv([], "x" * 300)),
        (TypeError, r"^graders=", lambda: nd.agreement(tmp_path, "a", "b", "hint", graders="words")),
        (TypeError, r"^W_enc=None", lambda: nd.feature_from_tensors(0, 4, W_enc=None)),
    ]  # fmt: skip
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()


ROWS = [dict(key="a", concept="fox", category="animal", layer=4, seed=0, control="", pooling="", judge="demo", protocol="hint", grader="words",
             answers=1, refusals=0, empty=0, broken=0, broken_grades=0, score=1.0, shuffled=None, top="fox", written=None, drawn=None)]  # fmt: skip
