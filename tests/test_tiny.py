"""The miniatures the other tests stand on are what they claim to be."""

import tiny
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def test_a_saved_folder_loads_offline_and_gives_the_same_answer(tiny_parts, tiny_folder):
    model, processor = tiny_parts
    again = AutoProcessor.from_pretrained(tiny_folder)
    picture = Image.effect_noise((90, 120), 80).convert("RGB")
    inputs = [
        p(images=[[picture]], text=["<start_of_image>what 日本 🐙?"], return_tensors="pt") for p in (processor, again)
    ]
    assert inputs[0].keys() == inputs[1].keys()
    for name in inputs[0]:
        assert torch.equal(inputs[0][name], inputs[1][name]), name
    assert (inputs[0]["input_ids"] == model.config.image_token_id).sum() == 16
    loaded = AutoModelForImageTextToText.from_pretrained(tiny_folder).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs[0]).logits, loaded(**inputs[1]).logits)


def test_the_chat_template_behaves_as_gemma_3s(tiny_parts):
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]},
        {"role": "assistant", "content": "a bee"},
        {"role": "user", "content": " sure? "},
    ]
    assert tiny_parts[1].tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nbe brief\n\n<start_of_image>what?<end_of_turn>\n<start_of_turn>model\na bee"
        "<end_of_turn>\n<start_of_turn>user\nsure?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_every_parameter_is_random_and_activations_are_near_one(tiny_parts):
    model, processor = tiny_parts
    assert all(p.unique().numel() > 1 for p in model.parameters())
    inputs = processor(
        images=[[Image.effect_noise((112, 112), 80).convert("RGB")]], text=["<start_of_image>"], return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert all(0.3 < float(s.std()) < 10 for s in states)


def test_one_seed_one_model():
    before = torch.random.get_rng_state()
    a, b, c = (tiny.gemma3(seed=seed, layers=1)[0].state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(torch.equal(a[k], c[k]) for k in a if a[k].is_floating_point() and "position" not in k)
