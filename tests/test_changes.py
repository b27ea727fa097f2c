"""What a user did to the model before: edits, hooks, adapters, ablated weights; all of it shows, and nothing outlives it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import nnsight
import pytest
import tiny
import tiny_families
import torch

import nnsight_dream as nd
from nnsight_dream.alignment import encoders
from nnsight_dream.models.reading import mean_patches
from nnsight_dream.sae.reference import reference_norm
from nnsight_dream.state import changes
from nnsight_dream.synthesis.centres import centre as centre_of

IDS = torch.tensor([[5, 6, 7, 8]])
MASK = torch.ones_like(IDS)
FEW: dict[str, Any] = {"steps": 2, "batch": 1, "canvas": nd.Pixels(24), "augment": (), "progress": False}


def pictures(count: int = 1, side: int = 112) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def parts() -> tuple[Any, Any]:
    return tiny.gemma3(seed=3)


def doubled(block: Any) -> Any:
    """A block whose output is twice as large, made without nnsight and without hooks: the reference."""

    class Doubled(type(block)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            return (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2

    block.__class__ = Doubled
    return block


def everything(vlm: nd.VLM) -> dict[str, Any]:
    """What a model gives by every door: text, concept, pictures, a climb."""
    x = pictures().requires_grad_(True)
    patches = nd.read_pictures(vlm, x, [2, 4])
    octopus = nd.concept(vlm, "octopus", 3)
    return {
        "text": nd.read_text(vlm, IDS, MASK, [1, 2, 3]),
        "patches": patches,
        "gradient": torch.autograd.grad(patches[vlm.site(4)].sum(), x)[0],
        "mean": mean_patches(vlm, [pictures(2)], [2]),
        "concept": octopus.vector,
        "history": torch.tensor(nd.synthesize(vlm, octopus, **FEW).history),
    }


def close(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            close(a[key], b[key])
    else:
        torch.testing.assert_close(a.detach(), b.detach(), atol=2e-5, rtol=2e-5)


@pytest.fixture
def reference() -> dict[str, Any]:
    hf, processor = tiny.gemma3(seed=3)
    doubled(hf.model.language_model.layers[1])
    return everything(nd.load(hf, processor=processor))


@pytest.mark.parametrize("way", ["copy", "in place", "after loading", "on the root", "local"])
def test_an_edit_shows_by_every_door(parts: tuple, reference: dict[str, Any], way: str) -> None:
    hf, processor = parts
    model = nnsight.NNsight(hf)
    plain = everything(nd.load(model, processor=processor))
    assert not torch.allclose(plain["concept"], reference["concept"])
    options = {"remote": "local"} if way == "local" else {}
    vlm = nd.load(model, processor=processor, **options)
    if way == "copy":
        with model.edit() as (_, steered):
            steered.model.language_model.layers[1].output = steered.model.language_model.layers[1].output * 2
        vlm = nd.load(steered, processor=processor)
    elif way == "on the root":
        with model.model.edit(inplace=True):
            model.model.language_model.layers[1].output = model.model.language_model.layers[1].output * 2
    else:
        with model.edit(inplace=True):
            model.model.language_model.layers[1].output = model.model.language_model.layers[1].output * 2
        if way == "in place":
            vlm = nd.load(model, processor=processor)
    if way == "local":
        octopus = nd.concept(vlm, "octopus", 3)
        torch.testing.assert_close(octopus.vector, reference["concept"], atol=2e-5, rtol=2e-5)
        history = torch.tensor(nd.synthesize(vlm, octopus, **FEW).history)
        torch.testing.assert_close(history, reference["history"], atol=2e-5, rtol=2e-5)
        return
    close(everything(vlm), reference)
    # an edit of a copy leaves the model itself alone, and one that is taken back is gone
    whole = model.model if way == "on the root" else model
    whole.clear_edits()
    close(everything(nd.load(model, processor=processor)), plain)


def test_edits_that_cannot_show_are_said(parts: tuple) -> None:
    hf, processor = parts
    model = nnsight.NNsight(hf)
    block = model.model.language_model.layers[1]
    with block.edit(inplace=True):
        block.output = block.output * 2
    with pytest.raises(ValueError, match=r"an edit is stored on model\.model\.language_model\.layers\.1, .* alone"):
        nd.load(model, processor=processor)
    model.get("model.language_model.layers.1").clear_edits()  # the advice
    vlm = nd.load(model, processor=processor)
    with model.edit(inplace=True):
        model.model.vision_tower.output.last_hidden_state[:] = 0
    with pytest.raises(ValueError, match=r"tower by itself runs .* would leave out its 1 edit"):
        encoders.tower(vlm)
    with pytest.raises(
        ValueError, match=r"an edit of .* names model\.vision_tower.*load the model without image_size="
    ):
        nd.load(model, processor=processor, image_size=56)


@pytest.mark.parametrize("name", ["gemma4", "qwen3_vl", "llava_next", "chameleon"])
def test_an_edit_that_changes_nothing_changes_no_bit(name: str) -> None:
    """The whole model is called then, with what was worked out once for its root."""
    made = tiny_families.build(name)
    plain = nd.load(made.model, processor=made.processor, **made.load)
    model = nnsight.NNsight(made.model)
    block = model.get(f"{plain.family.layers}.0")
    with model.edit() as (_, same):
        block.output = block.output
    vlm = nd.load(same, processor=made.processor, **made.load)
    x = torch.rand(1, 3, *plain.image_size, generator=torch.Generator().manual_seed(0))
    one, two = (nd.read_pictures(v, x, [2, v.layers]) for v in (plain, vlm))
    assert all(torch.equal(one[s], two[s]) for s in one)
    assert len(vlm.edits) == 1


def test_hooks_show_at_every_site(parts: tuple, reference: dict[str, Any]) -> None:
    hf, processor = parts
    plain = everything(nd.load(hf, processor=processor))
    vlm = nd.load(hf, processor=processor)
    everything(vlm)  # what is kept must not outlive the change
    block = hf.model.language_model.layers[1]
    handle = block.register_forward_hook(lambda m, args, out: (out[0] * 2, *out[1:]) if type(out) is tuple else out * 2)
    close(everything(vlm), reference)  # layer 2, where the hook itself is, included
    handle.remove()
    close(everything(vlm), plain)
    following = hf.model.language_model.layers[2]
    handle = following.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:]))
    shown = everything(vlm)
    torch.testing.assert_close(shown["concept"], reference["concept"], atol=2e-5, rtol=2e-5)
    pre = vlm.site(3, "resid_pre")
    close(nd.read_text(vlm, IDS, MASK, [pre])[pre], reference["text"][nd.Site(2)])
    handle.remove()


# -- adapters ----------------------------------------------------------------------------------------------------


def lora(hf: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(hf, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return tuned


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", ["peft", "NNsight", "NNsight edited"])
def test_lora_as_peft_hands_it_out(parts: tuple, way: str) -> None:
    hf, processor = parts
    plain = nd.concept(nd.load(hf, processor=processor), "octopus", 3).vector
    tuned = lora(hf)
    given = tuned if way == "peft" else nnsight.NNsight(tuned)
    vlm = nd.load(given, processor=processor)
    with torch.no_grad():
        states = tuned(
            input_ids=IDS, attention_mask=MASK, token_type_ids=0 * IDS, output_hidden_states=True
        ).hidden_states
    torch.testing.assert_close(nd.read_text(vlm, IDS, MASK, [3])[nd.Site(3)], states[3])
    assert not torch.allclose(nd.concept(vlm, "octopus", 3).vector, plain)
    asked = {name: p.requires_grad for name, p in tuned.named_parameters()}
    assert nd.synthesize(vlm, nd.concept(vlm, "octopus", 3), **FEW).history
    assert asked == {name: p.requires_grad for name, p in tuned.named_parameters()}
    if way == "NNsight edited":
        layers = given.base_model.model.model.language_model.layers
        with given.edit(inplace=True):
            layers[1].output = layers[1].output * 2
        with given.trace(input_ids=IDS, attention_mask=MASK, token_type_ids=0 * IDS):
            own = nnsight.save(layers[2].output)
        torch.testing.assert_close(nd.read_text(vlm, IDS, MASK, [3])[nd.Site(3)], own)
        given.clear_edits()
        torch.testing.assert_close(nd.read_text(vlm, IDS, MASK, [3])[nd.Site(3)], states[3])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_that_wrap_the_forward_are_refused(parts: tuple) -> None:
    from peft import PromptTuningConfig, get_peft_model

    hf, processor = parts
    hf.config.hidden_size, hf.config.num_hidden_layers, hf.config.num_attention_heads = 32, 4, 4
    tuned = get_peft_model(hf, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=32))
    with pytest.raises(ValueError, match=r"PROMPT_TUNING of peft .*model\.get_base_model\(\)"):
        nd.load(tuned, processor=processor)


# -- weights -----------------------------------------------------------------------------------------------------

WRITES = {
    "in place": lambda w: w[3].zero_(),
    "under .data": lambda w: w.data[3].zero_(),
    "one value under .data": lambda w: w.data.view(-1)[7].add_(1e-3),
    "two rows exchanged": lambda w: w.data.copy_(w.data[[1, 0, *range(2, len(w))]]),
    "another tensor": lambda w: setattr(w, "data", w.data * 1.5),
}


@pytest.mark.parametrize("write", WRITES)
def test_any_changed_weight_is_seen(parts: tuple, write: str) -> None:
    vlm = nd.load(parts[0], processor=parts[1])
    layers = parts[0].model.language_model.layers
    before = [vlm.weights_tag(n) for n in (1, 2, 3)], [vlm.fingerprint(n) for n in (1, 2, 3)]
    assert before == ([vlm.weights_tag(n) for n in (1, 2, 3)], [vlm.fingerprint(n) for n in (1, 2, 3)])
    with torch.no_grad():
        WRITES[write](layers[1].mlp.up_proj.weight)
    for then, now in zip(
        before, ([vlm.weights_tag(n) for n in (1, 2, 3)], [vlm.fingerprint(n) for n in (1, 2, 3)]), strict=True
    ):
        assert [a == b for a, b in zip(then, now, strict=True)] == [True, False, False]


def test_a_large_model_is_read_once_and_looked_at(parts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model of more than 64 MiB: version counters and 64 values of each tensor are looked at."""
    monkeypatch.setattr(changes, "SMALL", 0)
    vlm = nd.load(parts[0], processor=parts[1], check=False)
    reads: list[torch.Tensor] = []
    real = changes.of_tensor
    monkeypatch.setattr(changes, "of_tensor", lambda t: reads.append(t) or real(t))
    before = vlm.weights_tag(3)
    assert len(reads) > 50
    reads.clear()
    assert vlm.weights_tag(3) == before
    assert reads == []
    weight = parts[0].model.language_model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3].zero_()
    assert vlm.weights_tag(3) != before
    assert len(reads) == 1
    weight.data.mul_(2)
    assert len({vlm.weights_tag(3), vlm.weights_tag(3)}) == 1
    assert len(reads) == 2


def test_the_tag_does_not_depend_on_who_reads_it(parts: tuple, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hf, processor = parts
    tag = nd.load(hf, processor=processor).weights_tag(2)
    hf.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert nd.load(tmp_path).weights_tag(2) == tag
    monkeypatch.setattr(changes, "SMALL", 0)
    assert nd.load(tmp_path, up_to_layer=3).weights_tag(2) == tag


def test_the_demos_hash_costs_little_more_than_reading_its_weights(demo_vlm: nd.VLM) -> None:
    """Against a plain hash of all its bytes on the same machine, so a slow machine fails no sooner than a quick one."""
    weights = [p.detach().float().numpy().tobytes() for p in demo_vlm.hf.parameters()]

    def plain() -> None:
        for weight in weights:
            hashlib.sha256(weight).digest()

    def seconds(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    demo_vlm.weights_tag(4)
    rounds = [(seconds(lambda: demo_vlm.weights_tag(4)), seconds(plain)) for _ in range(5)]
    assert min(tag for tag, _ in rounds) < 2 * min(whole for _, whole in rounds)


def test_centres_and_norms_are_fresh_after_a_change(parts: tuple) -> None:
    hf, processor = parts
    vlm = nd.load(hf, processor=processor)
    aim = nd.from_tensor(vlm, torch.linspace(-1, 1, 32), 2)
    nd.synthesize(vlm, aim, **FEW)
    norm = reference_norm(vlm, vlm.site(2))
    with torch.no_grad():
        hf.model.language_model.layers[0].mlp.down_proj.weight.mul_(3)
    fresh = nd.load(hf, processor=processor)
    fresh.id = vlm.id  # a model without a name gets one by its weights
    expected = nd.synthesize(fresh, aim, **FEW)
    again = nd.synthesize(vlm, aim, **FEW)
    assert again.history == expected.history
    assert again.scores == expected.scores
    assert reference_norm(vlm, vlm.site(2)) == reference_norm(fresh, vlm.site(2)) != norm
    centre = centre_of(vlm, vlm.site(2), nd.Grey())
    hf.model.language_model.rotary_emb.full_attention_inv_freq.mul_(0.5)  # no weight, but no less a part of the model
    hf.model.language_model.rotary_emb.sliding_attention_inv_freq.mul_(0.5)
    assert not torch.equal(centre_of(vlm, vlm.site(2), nd.Grey()), centre)
    octopus = nd.concept(vlm, "octopus", 2)
    assert torch.equal(octopus.vector, nd.concept(vlm, "octopus", 2, cache=False).vector)


def test_a_steering_vector_of_a_hook_or_edit_is_part_of_the_tag(parts: tuple) -> None:
    hf, processor = parts
    model = nnsight.NNsight(hf)
    vlm = nd.load(model, processor=processor)
    plain, push = vlm.weights_tag(2), {"vector": torch.zeros(32), "by": 1.0}
    handle = hf.model.language_model.layers[0].register_forward_hook(
        lambda m, a, out: out + push["by"] * push["vector"]
    )
    tags = [plain, vlm.weights_tag(2)]
    assert vlm.weights_tag(2) == tags[-1]
    push["vector"].add_(1)
    tags.append(vlm.weights_tag(2))
    push["by"] = 2.0
    tags.append(vlm.weights_tag(2))
    handle.remove()
    assert vlm.weights_tag(2) == plain
    scale = torch.ones(32)
    with model.edit(inplace=True):
        model.model.language_model.layers[0].output = model.model.language_model.layers[0].output * scale
    tags.append(vlm.weights_tag(2))
    assert vlm.weights_tag(2) == tags[-1]
    scale.mul_(2)
    tags.append(vlm.weights_tag(2))
    assert len(set(tags)) == len(tags)
    model.clear_edits()
    assert vlm.weights_tag(2) == plain
