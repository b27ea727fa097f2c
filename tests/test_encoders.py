"""Features of any side of any model, against Hugging Face's own hidden states, on tiny random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.alignment import encoders
from nnsight_dream.alignment import features as feature_store
from nnsight_dream.alignment.features import features

SMALL = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
SEEN = dict(**SMALL, image_size=32, patch_size=8)
TEXTS = ["The octopus has eight arms.", "fox", "A dog is an animal that barks"]


def images(count: int, side: int = 40, seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


class Processor:
    """What an image processor does, in one line."""

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([torch.from_numpy(np.array(i.resize((32, 32)))) for i in images]).permute(
                0, 3, 1, 2
            )
            / 127.5
            - 1
        }

    def to_dict(self) -> dict:
        return {"size": 32}


def made(kind: str) -> torch.nn.Module:
    T = transformers
    with torch.random.fork_rng(devices=[]):
        model = {
            "vit": lambda: T.ViTModel(T.ViTConfig(**SEEN)),
            "dinov2": lambda: T.Dinov2Model(T.Dinov2Config(**SEEN)),
            "registers": lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**SEEN, num_register_tokens=3)),
            "siglip": lambda: T.SiglipVisionModel(T.SiglipVisionConfig(**SEEN)),
            "clip": lambda: T.CLIPModel(T.CLIPConfig(text_config=dict(**SMALL, vocab_size=99), vision_config=SEEN)),
            "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SMALL, num_key_value_heads=1, vocab_size=400)),
            "bloom": lambda: T.BloomForCausalLM(T.BloomConfig(hidden_size=16, n_layer=3, n_head=2, vocab_size=400)),
            "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=400)),
        }[kind]()
    tiny.randomise(model, 1)
    return model


@pytest.mark.parametrize(("kind", "before"), [("vit", 1), ("dinov2", 1), ("registers", 4), ("siglip", 0), ("clip", 1)])
def test_vision_models_are_hugging_faces_hidden_states(kind: str, before: int) -> None:
    model, some = made(kind).train(), images(3)
    hf = getattr(model, "vision_model", model).eval()
    expected = hf(**Processor()(some, "pt"), output_hidden_states=True).hidden_states
    hf.train()
    for tokens in ("class", "mean") if before else ("mean",):
        encoder = encoders.vision_model(model, Processor(), tokens=tokens)
        assert encoder.layers == 3
        read = encoder.read(some, [0, 1, 3])
        for layer in (0, 1, 3):
            h = expected[layer][:, 0] if tokens == "class" else expected[layer][:, before:].mean(1)
            assert torch.allclose(read[layer], h, atol=1e-5), (kind, tokens, layer)
    assert hf.training  # as it was
    assert encoders.vision_model(model, Processor()).tokens == ("class" if before else "mean")


@pytest.mark.parametrize("kind", ["llama", "bloom", "gpt2"])
def test_language_models_are_hugging_faces_hidden_states(kind: str) -> None:
    model, tokenizer = made(kind).eval(), tiny.byte_level()
    for tokens in ("mean", "last"):
        read = encoders.language_model(model, tokenizer, tokens=tokens).read(TEXTS, [0, 1, 2])
        for i, text in enumerate(TEXTS):
            coded = tokenizer(text, return_tensors="pt")
            expected = model(input_ids=coded["input_ids"], output_hidden_states=True).hidden_states
            for layer in (0, 1, 2):
                own = expected[layer][0, 1:]  # without <bos>
                h = own[-1] if tokens == "last" else own.mean(0)
                assert torch.allclose(read[layer][i], h, atol=1e-5), (kind, tokens, layer, text)


def test_sides_of_a_vlm(tiny_vlm: nd.VLM) -> None:
    some = images(3, 112)
    x = torch.stack([torch.from_numpy(np.array(i)) for i in some]).permute(0, 3, 1, 2).float() / 255
    read = encoders.image_side(tiny_vlm).read(some, [0, 4])
    patches = nd.read_pictures(tiny_vlm, x, ["blocks.0.hook_resid_pre", 4])
    for layer, expected in zip((0, 4), patches.values(), strict=True):
        assert torch.allclose(read[layer], expected.detach().mean(1), atol=1e-5)
    for tokens in ("mean", "last"):
        read = encoders.text_side(tiny_vlm, tokens).read(TEXTS, [0, 2])
        for i, text in enumerate(TEXTS):
            from nnsight_dream.models.spans import wrap

            (prompt,) = wrap(tiny_vlm.tokenizer, [text])
            hidden = tiny_vlm.hf(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
            for layer in (0, 2):
                own = hidden[layer][0, list(prompt.own)]
                assert torch.allclose(read[layer][i], own[-1] if tokens == "last" else own.mean(0), atol=1e-4)
    seen = tiny_vlm.hf.get_submodule(tiny_vlm.family.tower)(**tiny_vlm.pack(x), output_hidden_states=True).hidden_states
    read = encoders.tower(tiny_vlm).read(some, [0, 1, 2])
    assert all(torch.allclose(read[layer], seen[layer].mean(1), atol=1e-4) for layer in (0, 1, 2))


def test_layers_and_tokens_that_are_not_there(tiny_vlm: nd.VLM) -> None:
    side = encoders.image_side(tiny_vlm)
    with pytest.raises(ValueError, match=r"layers=\[5\] are not in .*0 \(the embeddings\) to 4"):
        side.read(images(1), [1, 5])
    with pytest.raises(ValueError, match="layers= is empty"):
        side.check_layers([])
    with pytest.raises(ValueError, match="allowed is 'mean'"):
        encoders.image_side(tiny_vlm, "class")
    with pytest.raises(ValueError, match="allowed are 'mean', 'last'"):
        encoders.text_side(tiny_vlm, "first")
    with pytest.raises(ValueError, match="no class token; allowed is 'mean'"):
        encoders.tower(tiny_vlm, "class")
    with pytest.raises(ValueError, match="needs processor="):
        encoders.vision_model(made("vit"))
    with pytest.raises(ValueError, match="needs tokenizer="):
        encoders.language_model(made("gpt2"))
    with pytest.raises(ValueError, match=r"blocks='h' is no list.*layers"):
        encoders.language_model(made("llama"), tiny.byte_level(), blocks="h")
    with pytest.raises(ValueError, match="a text is needed; got str ' '"):
        encoders.text_side(tiny_vlm).read([" "], [0])


def test_pictures_of_any_size(tiny_vlm: nd.VLM) -> None:
    mixed = [images(1, 40)[0], images(1, 112)[0], torch.rand(3, 30, 50)]
    assert encoders.image_side(tiny_vlm).read(mixed, [1])[1].shape == (3, 32)


# -- kept on disk ------------------------------------------------------------------------------------------------


class Counting:
    """An encoder that counts how many items it read."""

    def __init__(self, inner: encoders.Encoder) -> None:
        self.read_items, self.most, self.inner = 0, 0, inner
        self.encoder = encoders.Encoder(inner.name, inner.takes, inner.layers, inner.tokens, inner.key, self.read)

    def read(self, items: list, layers: list[int]) -> dict:
        self.read_items += len(items)
        self.most = max(self.most, len(items))
        return self.inner._read(items, layers)


@pytest.fixture
def counting(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(feature_store, "CHUNK", 4)
    return Counting(encoders.text_side(tiny_vlm))


WORDS = ["fox", "dog", "cat", "bee", "lion", "frog", "fish", "sea", "sun", "city"]


def test_features_are_read_once(counting: Counting, tmp_path: Path) -> None:
    found = features(counting.encoder, iter(WORDS), [0, 2], batch=3, folder=tmp_path)
    assert (found.n, found.made, counting.read_items, counting.most) == (10, 3, 10, 3)
    assert list(found) == [0, 2]
    direct = counting.inner.read(WORDS, [0, 2])
    assert np.allclose(found[2], direct[2].numpy(), atol=1e-5)
    again = features(counting.encoder, WORDS, [2], folder=tmp_path)
    assert (again.made, counting.read_items) == (0, 10)
    assert np.array_equal(again[2], found[2])
    features(counting.encoder, [*WORDS, "arm"], [0, 2], folder=tmp_path)  # the last chunk alone is new
    assert counting.read_items == 13
    more = features(counting.encoder, WORDS, [1, 2], folder=tmp_path)  # another layer: read, layer 2 is kept
    assert more.made == 3
    with pytest.raises(KeyError, match="layer 3 was not read; there are 1, 2"):
        more[3]


def test_an_interrupt_costs_one_chunk(counting: Counting, tmp_path: Path) -> None:
    def broken():
        yield from WORDS[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features(counting.encoder, broken(), [1], folder=tmp_path)
    assert counting.read_items == 4
    features(counting.encoder, WORDS, [1], folder=tmp_path)
    assert counting.read_items == 10


def test_a_stream_is_held_one_chunk_at_a_time(counting: Counting, tmp_path: Path) -> None:
    import gc
    import weakref

    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Text(str):
        pass

    def stream():
        nonlocal most
        for i in range(40):
            item = Text(f"fox {i}")
            alive.add(item)
            if i % 4 == 0:
                gc.collect()  # traces leave cycles behind
            most = max(most, len(alive))
            yield item

    gc.freeze()  # what is there already need not be looked through each time
    try:
        features(counting.encoder, stream(), [1], folder=tmp_path)
    finally:
        gc.unfreeze()
    assert most <= 2 * 4


def test_damaged_files_are_made_anew(counting: Counting, tmp_path: Path) -> None:
    found = features(counting.encoder, WORDS, [1], folder=tmp_path)
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="cannot be used"):
        again = features(counting.encoder, WORDS, [1], folder=tmp_path)
    assert again.made == 1
    assert np.array_equal(again[1], found[1])


def test_what_decides_features_is_in_the_key(tiny_vlm: nd.VLM) -> None:
    other, processor = tiny.gemma3(seed=5)
    keys = [
        encoders.text_side(tiny_vlm).key,
        encoders.text_side(tiny_vlm, "last").key,
        encoders.image_side(tiny_vlm).key,
        encoders.tower(tiny_vlm).key,
        encoders.text_side(nd.load(other, processor=processor, check=False)).key,
    ]
    assert len(set(keys)) == 5
    assert encoders.text_side(tiny_vlm).key == keys[0]


def test_items_of_the_wrong_kind(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a str among pictures: PIL images"):
        features(encoders.image_side(tiny_vlm), ["fox"], folder=tmp_path)
    with pytest.raises(ValueError, match="a Image among words: texts"):
        features(encoders.text_side(tiny_vlm), images(1), folder=tmp_path)
    with pytest.raises(ValueError, match="no words: at least one"):
        features(encoders.text_side(tiny_vlm), [], folder=tmp_path)
