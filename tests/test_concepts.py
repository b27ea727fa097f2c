"""Concept and contrast directions against plain Hugging Face forwards written out by hand, and their cache."""

import dataclasses
import functools
import types
import warnings

import pytest
import tiny
import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.directions.baseline_words import BASELINE_WORDS
from nnsight_dream.engine import jobs
from nnsight_dream.io import cache
from nnsight_dream.models import spans

BEFORE, AFTER = "<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
WORDS = ["octopus", "user", "San Francisco", "木星 🐙", "bee bee"]
FEW = ("desk", "marble", "honey", "marble")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    cache._warn_once.cache_clear()
    return tmp_path


@pytest.fixture
def forwards(monkeypatch):
    """The sizes (rows, sites) of the text passes that are made."""
    passes, real = [], jobs.text_means

    def text_means(model, how, batches, points):
        passes.extend((len(inputs["input_ids"]), len(points)) for inputs, _ in batches)
        return real(model, how, batches, points)

    monkeypatch.setattr(jobs, "text_means", text_means)
    return passes


@functools.cache
@torch.no_grad()
def states(vlm, text):
    """One unpadded forward of the bare Hugging Face model: residual streams after each block, by hooks, and ids."""
    caught, ids = [], vlm.tokenizer(BEFORE + text + AFTER, add_special_tokens=False, return_tensors="pt")["input_ids"]
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: caught.append(output[0].clone()))
        for block in vlm.hf.get_decoder().layers
    ]
    try:
        out = vlm.hf(input_ids=ids, output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in range(1, vlm.layers):  # the last hidden state is past the final norm
        assert torch.equal(caught[layer - 1], out.hidden_states[layer][0])
    return ids[0], caught


def by_hand(vlm, text, layer):
    """a_L: the byte-level tokenizer never joins across the template's edges, so the word's tokens can be counted."""
    ids, caught = states(vlm, text)
    before = len(vlm.tokenizer(BEFORE, add_special_tokens=False)["input_ids"])
    own = len(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert vlm.tokenizer.decode(ids[before : before + own]) == text
    return caught[layer - 1][before : before + own].mean(0)


@functools.cache
def centre_by_hand(vlm, layer, words):
    return torch.stack([by_hand(vlm, word, layer) for word in words]).mean(0)


def test_the_baseline_is_the_papers():
    assert len(BASELINE_WORDS) == 100
    assert len(set(BASELINE_WORDS)) == 98
    assert BASELINE_WORDS.count("marble") == BASELINE_WORDS.count("butterfly") == 2
    assert BASELINE_WORDS[:3] == ("desk", "jacket", "gondola")
    assert BASELINE_WORDS[-2:] == ("rice", "enigma")
    assert BASELINE_WORDS[43] == BASELINE_WORDS[48] == "marble"


def test_against_hugging_face_at_every_layer_with_the_papers_baseline(tiny_vlm):
    found = nd.concept(tiny_vlm, WORDS, list(range(1, 5)))
    for word, row in zip(WORDS, found, strict=True):
        for layer, direction in enumerate(row, 1):
            wanted = by_hand(tiny_vlm, word, layer) - centre_by_hand(tiny_vlm, layer, BASELINE_WORDS)
            assert torch.allclose(direction.vector, wanted, atol=1e-5), (word, layer)
            assert direction.norm > 0.1
            assert direction.site == tiny_vlm.site(layer)
            assert direction.label == word


def test_a_repeat_in_the_baseline_counts_twice(tiny_vlm):
    found = nd.concept(tiny_vlm, "octopus", 2, baseline=FEW)
    assert torch.allclose(found.vector, by_hand(tiny_vlm, "octopus", 2) - centre_by_hand(tiny_vlm, 2, FEW), atol=1e-5)
    once = nd.concept(tiny_vlm, "octopus", 2, baseline=("desk", "marble", "honey"))
    assert (once.vector - found.vector).abs().max() > 1e-3


def test_no_baseline_leaves_the_activation(tiny_vlm, forwards, folder):
    found = nd.concept(tiny_vlm, "octopus", 3, baseline=None)
    assert torch.allclose(found.vector, by_hand(tiny_vlm, "octopus", 3), atol=1e-5)
    assert forwards == [(1, 1)]
    assert not list(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("tokens", [1, 60, 10**6])
def test_batches_and_padding_change_nothing(tiny_vlm, monkeypatch, tokens):
    words = [*WORDS, "a", "octopus and a bee and a dog and a cat in San Francisco", "e"]
    one_by_one = [nd.concept(tiny_vlm, word, 3, baseline=FEW) for word in words]
    monkeypatch.setattr(spans, "batches", functools.partial(spans.batches, tokens=tokens))
    together = nd.concept(tiny_vlm, words, [1, 3], baseline=FEW, cache=False)
    for alone, (_, same) in zip(one_by_one, together, strict=True):
        assert torch.allclose(alone.vector, same.vector, atol=1e-5)


def test_the_mask_tells_padding_from_text(tiny_vlm, monkeypatch):
    real, seen = jobs.text_means, []

    def text_means(model, how, batches, points):
        seen.extend((inputs["input_ids"], inputs["attention_mask"]) for inputs, _ in batches)
        return real(model, how, batches, points)

    monkeypatch.setattr(jobs, "text_means", text_means)
    nd.concept(tiny_vlm, ["a", "octopus in San Francisco"], 1, baseline=None)
    ((ids, mask),) = seen  # families that look ahead depend on it; this causal one would not show it
    assert torch.equal(mask, (ids != tiny_vlm.tokenizer.pad_token_id).long())
    assert mask[0].sum() < mask[1].sum() == ids.shape[1]


def test_what_comes_back_has_the_shape_asked_for(tiny_vlm):
    make = functools.partial(nd.concept, tiny_vlm, baseline=FEW)
    assert isinstance(make("bee", 1), nd.Direction)
    assert [d.site.layer for d in make("bee", [2, 1])] == [2, 1]
    assert [d.site.layer for d in make("bee", range(1, 4))] == [1, 2, 3]
    assert [d.label for d in make(["bee", "dog", "bee"], 1)] == ["bee", "dog", "bee"]
    assert [[(d.label, d.site.layer) for d in row] for row in make(("bee", "dog"), (1, 3))] == [
        [("bee", 1), ("bee", 3)],
        [("dog", 1), ("dog", 3)],
    ]
    assert len(make(["bee"], 1)) == len(make("bee", [1])) == len(make(["bee"], [1])[0]) == 1


def test_all_names_of_a_site_mean_the_same(tiny_vlm):
    names = [2, "blocks.1.hook_resid_post", tiny_vlm.hf_name(2), nd.Site(2)]
    found = nd.concept(tiny_vlm, "bee", names, baseline=FEW)
    assert all(torch.equal(d.vector, found[0].vector) and d.site == nd.Site(2) for d in found)
    (other,) = nd.concept(tiny_vlm, "bee", ["blocks.1.hook_mlp_out"], baseline=FEW)
    assert other.site.kind == "mlp_out"
    assert nd.cosine(found[0], found[1]) == pytest.approx(1)


def test_white_space_around_a_word_does_not_count(tiny_vlm):
    a, b = nd.concept(tiny_vlm, [" bee\n", "bee"], 2, baseline=FEW)
    assert torch.equal(a.vector, b.vector)
    assert a.label == "bee"


def test_provenance_tells_the_whole_story(tiny_vlm):
    story = nd.concept(tiny_vlm, "octopus", 2).provenance
    assert story["method"] == "concept"
    assert story["baseline"] == "BASELINE_WORDS"
    assert tiny_vlm.tokenizer.decode(story["tokens"]) == "octopus"
    assert story["hf_name"] == tiny_vlm.hf_name(2)
    assert set(story["versions"]) == {"nnsight-dream", "nnsight", "transformers", "torch"}
    assert nd.concept(tiny_vlm, "octopus", 2, baseline=FEW).provenance["baseline"] == list(FEW)


def test_half_precision_gives_float32(tiny_parts):
    model, processor = tiny.gemma3(layers=2, dtype=torch.bfloat16)
    found = nd.concept(nd.load(model, processor=processor), "octopus", 2, baseline=FEW)
    assert found.vector.dtype == torch.float32
    assert 0.1 < found.norm < 1000


# -- cache


def test_the_second_call_reads_the_baseline_from_disk(tiny_vlm, forwards, folder):
    first = nd.concept(tiny_vlm, "octopus", [1, 3])
    assert forwards[0] == (1, 2)
    assert sum(rows for rows, _ in forwards) == 101
    assert len(list(folder.rglob("*.safetensors"))) == 2
    forwards.clear()
    second = nd.concept(tiny_vlm, "octopus", [1, 3])
    assert forwards == [(1, 2)]
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(first, second, strict=True))
    forwards.clear()
    nd.concept(tiny_vlm, "dog", [1, 2, 3])  # only layer 2 is new
    assert {sites for rows, sites in forwards if rows > 1} == {1}
    forwards.clear()
    nd.concept(tiny_vlm, "octopus", 1, cache=False)
    assert sum(rows for rows, _ in forwards) == 101


def test_the_cache_tells_models_sites_words_and_templates_apart(tiny_vlm, forwards, folder):
    def passes():
        rows = sum(rows for rows, _ in forwards)
        forwards.clear()
        return rows

    nd.concept(tiny_vlm, "bee", 1, baseline=FEW)
    assert passes() == 5
    for vlm, layer, words in [
        (tiny_vlm, 2, FEW),
        (tiny_vlm, "blocks.0.hook_mlp_out", FEW),
        (tiny_vlm, 1, FEW[:3]),
        (with_seed(1), 1, FEW),
    ]:
        nd.concept(vlm, "bee", layer, baseline=words)
        assert passes() == 1 + len(words)
        nd.concept(vlm, "bee", layer, baseline=words)
        assert passes() == 1
    same = with_seed(0)
    nd.concept(same, "bee", 1, baseline=FEW)
    assert passes() == 1
    same.tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    nd.concept(same, "bee", 1, baseline=FEW)
    assert passes() == 5
    with torch.no_grad():
        same.hf.get_decoder().layers[0].mlp.down_proj.weight.mul_(1.01)
    nd.concept(same, "bee", 1, baseline=FEW)
    assert passes() == 5


def with_seed(seed):
    model, processor = tiny.gemma3(seed=seed)
    return nd.load(model, processor=processor)


def test_a_damaged_cache_is_made_anew(tiny_vlm, forwards, folder):
    first = nd.concept(tiny_vlm, "bee", 1, baseline=FEW)
    (path,) = folder.rglob("*.safetensors")
    good = path.read_bytes()
    path.write_bytes(good[:20])
    forwards.clear()
    with pytest.warns(UserWarning, match="cannot be used .* made anew"):
        second = nd.concept(tiny_vlm, "bee", 1, baseline=FEW)
    assert len(forwards) == 2
    assert torch.equal(first.vector, second.vector)
    assert path.read_bytes() == good


def test_without_a_folder_it_still_works(tiny_vlm, monkeypatch, tmp_path):
    kept = nd.concept(tiny_vlm, "bee", 1, baseline=FEW)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="nothing can be kept"):
        made = nd.concept(tiny_vlm, "bee", 1, baseline=FEW)
    assert torch.equal(made.vector, kept.vector)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nd.concept(tiny_vlm, "bee", 1, baseline=FEW)


# -- errors


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("", 1), ValueError, "'' says nothing: give a word or a short phrase"),
        (("  \n", 1), ValueError, "says nothing"),
        ((["bee", ""], 1), ValueError, "says nothing"),
        (([], 1), ValueError, "words= is empty; give at least one text, such as 'octopus'"),
        ((7, 1), TypeError, "words= is a text or a list of texts; got int 7"),
        (([7], 1), TypeError, "a word is a string; got int 7"),
        (("bee", 5), ValueError, "layers 1 to 4.*nearest is layer=4"),
        (("bee", 0), ValueError, "layers 1 to 4"),
        (("bee", []), ValueError, r"layer=\[\] asks for nothing; give a layer from 1 to 4"),
        (("bee", "blocks.0.hook_resid_past"), ValueError, "did you mean 'blocks.0.hook_resid_post'"),
        (("bee", 1.5), TypeError, "a site is a layer number"),
    ],
)
def test_wrong_words_and_layers(tiny_vlm, arguments, error, said):
    with pytest.raises(error, match=said):
        nd.concept(tiny_vlm, *arguments)


def test_wrong_keywords_name_the_right_ones(tiny_vlm):
    with pytest.raises(
        TypeError, match=r"concept: .*'layers'; did you mean layer=; it takes \(vlm, words, layer, \*, baseline"
    ):
        nd.concept(tiny_vlm, "bee", layers=1)
    with pytest.raises(TypeError, match=r"missing a required argument: 'layer'"):
        nd.concept(tiny_vlm, "bee")
    with pytest.raises(ValueError, match=r"baseline= is empty; .* or baseline=None to subtract nothing"):
        nd.concept(tiny_vlm, "bee", 1, baseline=[])
    nd.concept(tiny_vlm, "bee", layer=1, baseline=None)  # the advice of both


def test_a_tokenizer_without_offsets_is_named(tiny_vlm):
    slow = dataclasses.replace(tiny_vlm, tokenizer=tiny.SlowTokenizer(tiny_vlm.tokenizer))
    with pytest.raises(TypeError, match="SlowTokenizer gives no character offsets"):
        nd.concept(slow, "bee", 1)


def test_a_template_kept_by_the_processor_alone_is_found():
    model, processor = tiny.gemma3(layers=1)
    vlm = nd.load(model, processor=processor)
    wanted = nd.concept(vlm, "bee", 1, baseline=FEW)
    vlm.tokenizer.chat_template = None
    assert torch.equal(nd.concept(vlm, "bee", 1, baseline=FEW).vector, wanted.vector)


# -- the demo's vocabulary


@pytest.fixture
def as_demo(tiny_vlm, monkeypatch):
    known = [
        types.SimpleNamespace(name=name, category="animals", aliases=aliases)
        for name, aliases in [("octopus", ()), ("dog", ("puppy", "hound")), ("bee", ("honeybee",)), ("T-Rex", ())]
    ]
    monkeypatch.setattr(bundle, "concepts", lambda: tuple(known))
    return dataclasses.replace(tiny_vlm, is_demo=True)


def test_a_word_the_demo_never_saw_is_told_with_the_nearest(as_demo):
    with pytest.warns(UserWarning, match=r"never shown 'octopuss'; did you mean 'octopus'\?"):
        nd.concept(as_demo, "octopuss", 1, baseline=FEW)
    with pytest.warns(UserWarning, match=r"never shown 'puppies'; did you mean 'dog'\?"):
        nd.concept(as_demo, ["bee", "puppies"], 1, baseline=FEW)


def test_a_word_like_none_of_them_is_told_what_there_is_and_a_long_one_is_cut(as_demo):
    with pytest.warns(UserWarning, match=r"never shown 'zzzz'; it knows such as \w"):
        nd.concept(as_demo, "zzzz", 1, baseline=FEW)
    with pytest.warns(UserWarning, match="never shown 'a very") as caught:
        long = nd.concept(as_demo, "a very long tale " * 8, 1, baseline=FEW)
    assert len(str(caught[0].message)) < 300
    assert max(len(str(long)), len(repr(long))) < 250


def test_words_the_demo_saw_are_quiet(as_demo, tiny_vlm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nd.concept(as_demo, ["octopus", "Puppy", " bee ", "t-rex"], 1, baseline=FEW)
        nd.concept(tiny_vlm, "octopuss", 1, baseline=FEW)


# -- contrast


def test_contrast_against_hugging_face(tiny_vlm):
    positive, negative = ["a red dog", "red bees in San Francisco", "red"], ["a dog", "bees"]
    for layer in (1, 4):
        last = [
            torch.stack([states(tiny_vlm, t)[1][layer - 1][-1] for t in side]).mean(0) for side in (positive, negative)
        ]
        mean = [torch.stack([by_hand(tiny_vlm, t, layer) for t in side]).mean(0) for side in (positive, negative)]
        for tokens, (these, those) in {"last": last, "all": mean}.items():
            found = nd.contrast(tiny_vlm, positive, negative, layer, tokens=tokens, label="red")
            assert torch.allclose(found.vector, these - those, atol=1e-5)
            assert found.label == "red"
            assert found.provenance["tokens"] == tokens


def test_contrast_takes_one_prompt_or_many_and_one_layer_or_many(tiny_vlm):
    one = nd.contrast(tiny_vlm, "hot", "cold", 2)
    assert one.label == "hot against cold"
    assert nd.contrast(tiny_vlm, ["hot", "x"], "cold", 2).label == "hot ... against cold"
    both = nd.contrast(tiny_vlm, "hot", "cold", [1, 2])
    assert [d.site.layer for d in both] == [1, 2]
    assert torch.allclose(both[1].vector, one.vector, atol=1e-5)
    back = nd.contrast(tiny_vlm, "cold", "hot", 2)
    assert torch.allclose(back.vector, -one.vector, atol=1e-5)


@pytest.mark.parametrize(
    ("positive", "negative", "options", "said"),
    [
        ([], "cold", {}, "positive= is empty"),
        ("hot", [], {}, "negative= is empty"),
        ("hot", " ", {}, "says nothing"),
        ("hot", "cold", {"tokens": "lst"}, "tokens='lst': allowed are 'last' and 'all'; did you mean 'last'"),
    ],
)
def test_contrast_errors(tiny_vlm, positive, negative, options, said):
    with pytest.raises(ValueError, match=said):
        nd.contrast(tiny_vlm, positive, negative, 1, **options)
