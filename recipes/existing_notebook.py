# %% [markdown]
# # Pictures in a notebook that you already have
#
# You have a vision-language model in nnsight, Hugging Face or TransformerLens, and a sparse autoencoder from sae-lens.
# Three lines show what its features look like to the model; nothing of yours is loaded again, moved or changed, and this
# notebook proves it.
#
#     python recipes/existing_notebook.py                            as a script
#     jupytext --to ipynb --execute recipes/existing_notebook.py     as a notebook
#
# It runs on the bundled model, offline, in less than a minute (most of it is `import sae_lens`).

# %% [markdown]
# ## Your notebook so far
# A Hugging Face model, wrapped by nnsight. Here it is the bundled one, by its folder; yours may be
# `"google/gemma-3-4b-it"`.

# %%
from copy import copy
from typing import Any

import nnsight
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformers import AutoModelForImageTextToText, AutoProcessor

from nnsight_dream.demo import bundle  # only for where the bundled model and pictures are

QUICK: list[str] = []  # this file is run as it is

folder = bundle.folder() / "vlm"
hf = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
model = nnsight.TransformersModel(hf, processor=processor, task="image-text-to-text")

# %% [markdown]
# It is in the middle of your work: you froze a part, left a part in training mode, and a hook of yours is on it.

# %%
hf.model.vision_tower.requires_grad_(False)
hf.model.multi_modal_projector.train()
norms: list[float] = []
hook = hf.model.language_model.layers[0].register_forward_hook(
    lambda _, args, out: norms.append(out.detach().norm().item())
)

# %% [markdown]
# You read activations as you always do: the image tokens after the fourth block, `blocks.3.hook_resid_post`.

# %%
question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]}]
text = processor.apply_chat_template(question, add_generation_prompt=True)


def asked(picture: Any) -> dict[str, torch.Tensor]:
    return processor(text=[text], images=[[picture]], add_special_tokens=False, return_tensors="pt")


def tokens(picture: Any, module: Any) -> torch.Tensor:
    """What a module gives at a picture's image tokens, (tokens, d_model)."""
    inputs = asked(picture)
    with torch.no_grad(), model.trace(**inputs) as tracer:
        hidden = module.output.save()
        tracer.stop()
    return hidden[0, inputs["input_ids"][0] == hf.config.image_token_id]


block = model.model.language_model.layers[3]
pictures = bundle.pictures(["octopus", "fox", "strawberry", "penguin", "bus", "sunflower", "frog", "pizza"])
seen = torch.stack([tokens(picture.image, block) for picture in pictures])  # (pictures, tokens, d_model)

# %% [markdown]
# And you have a sparse autoencoder, a sae-lens object: the bundled one, trained by sae-lens on this model. An
# installation without one gets a stand-in here, which is *not trained*: a sae-lens object whose features are the
# centred mean activations of these pictures. Everything below works the same for both.


# %%
def stand_in() -> SAE:
    means = seen.mean(1)
    rows = torch.nn.functional.normalize(means - means.mean(0), dim=1)
    metadata = SAEMetadata(model_name=str(folder), hook_name="blocks.3.hook_resid_post")
    result = StandardSAE(StandardSAEConfig(rows.shape[1], rows.shape[0], apply_b_dec_to_input=True, metadata=metadata))
    result.load_state_dict(
        {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(len(rows)), "b_dec": means.mean(0)}
    )
    return result


try:
    sae = SAE.load_from_disk(str(bundle.sae_folder(4)))
except FileNotFoundError:
    sae = stand_in()

with torch.no_grad():
    acts = sae.encode(seen).mean(1)  # (pictures, features)
octopus, fox = (int((acts[i] - acts.mean(0)).argmax()) for i in (0, 1))
print(f"{type(sae).__name__} of {sae.cfg.d_sae} features; most of an octopus's own is {octopus}, of a fox's {fox}")

# %% [markdown]
# ## What is yours, written down
# Every parameter and buffer: which object, where in memory, device, type, whether it wants a gradient, whether it has
# one, and its values. Every module: training mode, hooks, attributes. And what comes out.


# %%
def written_down() -> dict[str, Any]:
    state: dict[str, Any] = {}
    for owner, root in (("model", hf), ("sae", sae)):
        for name, t in [*root.named_parameters(), *root.named_buffers()]:
            grad = None if t.grad is None else t.grad.clone()
            state[f"{owner}.{name}"] = (id(t), t.data_ptr(), t.device, t.dtype, t.requires_grad, grad, t._version)
            state[f"{owner}.{name}, values"] = t.detach().clone()
        for name, module in root.named_modules():
            hooks = {kind: copy(v) for kind, v in vars(module).items() if "hooks" in kind}
            state[f"{owner}.{name}, module"] = (id(module), module.training, hooks, sorted(vars(module)))
    with torch.no_grad():
        state["logits"] = hf(**asked(pictures[0].image)).logits
        state["activations"] = sae.encode(seen)
    state["torch's random state"] = torch.get_rng_state()
    state["gradients on"] = torch.is_grad_enabled()
    return state


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    for name, value in before.items():
        equal = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        assert equal, f"{name} was {value}, is {after[name]}"


before = written_down()

# %% [markdown]
# ## The three lines
# `settings` are those chosen for the small bundled model; leave them out for another (`nd.Settings.paper` is then taken).

# %%
import nnsight_dream as nd

vlm = nd.load(model)
picture = nd.synthesize(vlm, nd.feature(sae, octopus), settings=nd.Settings.demo())

# %%
picture  # shows itself: what makes the feature fire, where, and how much

# %%
assert vlm.model is model
assert vlm.hf is hf
same(before, written_down())
print(f"feature {octopus}: {picture.scores}, {picture.readings}")

# %% [markdown]
# ## From a Hugging Face model
# Without nnsight in your notebook: hand in the model with its processor. nnsight wraps the modules that are there.

# %%
plain = nd.load(hf, processor=processor)
again = nd.synthesize(plain, nd.feature(sae, octopus), settings=nd.Settings.demo())
assert plain.hf is hf
assert again.history == picture.history  # the same climb, to the last bit
assert again.image.tobytes() == picture.image.tobytes()
same(before, written_down())

# %% [markdown]
# ## With TransformerLens's names
# Sites go by the names that you know from TransformerLens, for features and for words alike; they are read at Hugging
# Face's modules, and no second copy of the model is made.

# %%
features = nd.feature(sae, [octopus, fox], site="blocks.3.hook_resid_post")
word = nd.concept(vlm, "octopus", layer="blocks.3.hook_resid_post")
assert features[0].site(vlm) == word.site == vlm.site("model.language_model.layers.3.output") == nd.Site(layer=4)
together = nd.synthesize(vlm, [*features, word], settings=nd.Settings.demo(), steps=20)
same(before, written_down())
together  # two features, and the direction of a word

# %% [markdown]
# An autoencoder that is no sae-lens object comes as tensors, and reads at any hook: here at the MLP's output. Of its
# `W_enc` (d_model, features) a single column is made up, what an octopus puts there.

# %%
name = "blocks.3.hook_mlp_out"
print(vlm.describe(name))
W_enc = tokens(pictures[0].image, block.post_feedforward_layernorm).mean(0)[:, None]
inside = nd.synthesize(vlm, nd.feature_from_tensors(0, name, W_enc=W_enc), settings=nd.Settings.demo(), steps=20)
assert inside.site == nd.Site(4, "mlp_out")
assert max(inside.history) > inside.history[0]
inside

# %% [markdown]
# ## From a TransformerBridge
# TransformerLens 3 wraps the modules of a model in place, so a bridge of yours is handed in as it is, and its hook
# points are sites by their own names. Here it is booted on a model of its own, to keep the one above out of it.
# TransformerLens 3.9 computes the norms of Gemma 3's vision tower in a way of its own, which `nd.load` warns of; the
# line that it gives has them computed as the model does.

# %%
from transformer_lens.model_bridge import TransformerBridge

bridge = TransformerBridge.boot_transformers(str(folder))
for module in bridge.vision_encoder.modules():
    module.use_native_layernorm_autograd = True
bridged = nd.load(bridge)

# %% [markdown]
# The same model three ways: the concept vectors are the same, and so are the climbs. Hugging Face's and nnsight's to the
# last bit; the bridge's within rounding, since it computes attention and norms in steps of its own.

# %%
words = {way: nd.concept(v, "octopus", layer=4) for way, v in (("nnsight", vlm), ("bridge", bridged), ("plain", plain))}
assert torch.equal(words["plain"].vector, words["nnsight"].vector)
torch.testing.assert_close(words["bridge"].vector, words["nnsight"].vector, atol=1e-4, rtol=1e-4)
axis = words["nnsight"].vector
dreams = [nd.synthesize(v, nd.from_tensor(v, axis, 4), settings=nd.Settings.demo(), steps=20) for v in (vlm, bridged)]
assert abs(dreams[0].history[-1] - dreams[1].history[-1]) < 1e-2
print(f"octopus, 20 steps: {dreams[0].history[-1]:.5f} through nnsight, {dreams[1].history[-1]:.5f} through the bridge")


# %% [markdown]
# What a bridge is for: hooks. What does the direction look like to the model without the second block's first head?


# %%
def without_a_head(z: torch.Tensor, hook: Any) -> torch.Tensor:
    z = z.clone()
    z[:, :, 0] = 0  # (batch, tokens, heads, width of a head)
    return z


with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", without_a_head)]):
    ablated = nd.synthesize(bridged, nd.from_tensor(bridged, axis, 4), settings=nd.Settings.demo(), steps=20)
assert ablated.history[0] != dreams[1].history[0]
after = nd.synthesize(bridged, nd.from_tensor(bridged, axis, 4), settings=nd.Settings.demo(), steps=20)
assert after.history == dreams[1].history  # the hook is gone, and so is what it did
ablated

# %% [markdown]
# ## What is yours, at the end

# %%
same(before, written_down())
hook.remove()
print(f"{len(before)} things are as they were; the hook saw {len(norms)} passes")
