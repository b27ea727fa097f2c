"""The device that weights go to, with stand-ins for GPUs; what does not fit there; weights that are not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.alignment import encoders
from nnsight_dream.models import checkpoint as checkpoints
from nnsight_dream.models import devices, parts
from nnsight_dream.models import load as load_module
from nnsight_dream.models.size import Weights
from nnsight_dream.sweeps.ray import Cluster

GB = 1_000_000_000


class Gone(list):
    """Where models were sent, instead of there."""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gone:
    """Two GPUs of 80 GB, and what would be put on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in 80GB")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (79 * GB, 80 * GB))
    gone = Gone()
    real = checkpoints.from_checkpoint

    def here(cls: Any, place: Any, options: Any) -> Any:
        rest = {k: v for k, v in options.items() if k != "device_map"}
        gone.append((options.get("device_map"), rest.get("dtype")))
        return real(cls, place, rest)

    moved = torch.nn.Module.to

    def to(self: Any, *args: Any, **more: Any) -> Any:
        place = args[0] if args else more.get("device")
        if str(place).startswith("cuda"):
            gone.append((str(place), None))
            return self
        return moved(self, *args, **more)

    monkeypatch.setattr(parts, "from_checkpoint", here)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    return gone


# -- the choice --------------------------------------------------------------------------------------------------


def test_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, mps = torch.cuda, torch.backends.mps
    for has_cuda, has_mps, best in (
        (True, True, "cuda"),
        (True, False, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
    ):
        monkeypatch.setattr(cuda, "is_available", lambda has=has_cuda: has)
        monkeypatch.setattr(mps, "is_available", lambda has=has_mps: has)
        assert devices.best().type == best
        assert devices.there()[-1] == "cpu"


def test_a_folder_goes_to_the_gpu_and_one_line_says_so(
    gpus: Gone, tiny_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    nd.load(tiny_folder, check=False)
    assert gpus == [("cuda", torch.bfloat16)]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nnsight-dream:")]
    assert line == (
        f"nnsight-dream: {tiny_folder} goes to cuda (Stand-in 80GB, 79.0 GB free), the best device there is; device= "
        "chooses another"
    )


@pytest.mark.parametrize("device", ["cuda:1", 1, torch.device("cuda", 1)])
def test_the_device_asked_for(device: Any, gpus: Gone, tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    nd.load(tiny_folder, device=device, check=False)
    nd.load(str(tiny_folder), device="cpu", check=False)
    assert [place for place, _ in gpus] == ["cuda:1", "cpu"]
    assert "goes to" not in capsys.readouterr().err


def test_what_stays(gpus: Gone, tiny_parts: tuple, capsys: pytest.CaptureFixture) -> None:
    hf, processor = tiny_parts
    assert nd.load(hf, processor=processor, check=False).device.type == "cpu"
    assert not gpus
    demo = nd.load("demo", check=False)
    assert (demo.device.type, demo.dtype) == ("cpu", torch.float32)
    assert "the bundled model stays on the cpu" in capsys.readouterr().err
    nd.load("demo", device="cuda", check=False)
    assert [place for place, _ in gpus] == [None, "cuda"]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:7", "there is no cuda:7 here; here are cuda:0, cuda:1, cpu"),
        ("mps", "there is no mps here; here are cuda:0, cuda:1, cpu"),
        ("gpu", "is no device; here are cuda:0"),
        ("cuda0", r"did you mean 'cuda:0'\?"),
        ("auto", "nd.load takes device_map='auto' instead"),
        ("meta", "there is no meta here"),
    ],
)
def test_devices_that_are_not_there(device: str, words: str, gpus: Gone, tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=words):
        nd.load(tiny_folder, device=device)
    assert not gpus


def test_no_gpu_at_all(tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"device='cuda': there is no cuda here; here are .*cpu"):
        nd.load(tiny_folder, device="cuda")
    for wrong in (
        {"device_map": "cuda"},
        {"device_map": {"": 0}},
        {"device_map": {"model": "cpu", "lm_head": "cuda:3"}},
    ):
        with pytest.raises(
            ValueError,
            match=r"device_map=.*(there is no cuda.* here|is a GPU's number, and there is no GPU here); here are",
        ):
            nd.load(tiny_folder, **wrong)
    with pytest.raises(ValueError, match="two ways to say the same: give one of them"):
        nd.load(tiny_folder, device="cpu", device_map="auto")
    assert cli.main(["inspect", str(tiny_folder), "--device", "cuda"]) == 1
    assert "there is no cuda here" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no cuda here"):
        nd.DemoJudge(device="cuda")
    nd.load(tiny_folder, check=False)
    assert "goes to the cpu: torch sees no GPU" in capsys.readouterr().err


def test_a_gpu_that_torch_cannot_use_is_said(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl" or real(path))
    monkeypatch.setattr(load_module, "vlm_of_checkpoint", lambda x, *rest: devices.chosen(rest[3], str(x)))
    with pytest.raises(AttributeError):
        nd.load(tiny_folder)
    assert "goes to the cpu: torch sees no GPU, though this machine has one" in capsys.readouterr().err
    assert cli.main(["synthesize", "fox", "--model", str(tiny_folder)]) == 1
    assert "though this machine has one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["synthesize", "fox"], ["inspect"], ["features", "demo", "--word", "fox"], ["feature", "demo", "1"]]
)
def test_every_command_takes_a_device(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    seen = []

    def stop(x: Any, **options: Any) -> None:
        seen.append(options["device"])
        raise RuntimeError("seen")

    monkeypatch.setattr(load_module, "load", stop)
    model = [str(tiny_folder)] if arguments == ["inspect"] else ["--model", str(tiny_folder)]
    best = "cpu" if devices.best().type == "cpu" and not devices.has_unseen_gpu() else None
    for more, device in (([], best), (["--device", "cuda:1"], "cuda:1")):
        assert cli.main([*arguments, *model, *more]) == 1
        assert seen == [device]
        seen.clear()


def test_every_recipe_that_loads_a_model_takes_a_device() -> None:
    loading = []
    for recipe in sorted((Path(__file__).parents[1] / "recipes").glob("*.py")):
        text = recipe.read_text(encoding="utf-8")
        if "nd.load(args.model" in text or ("ArgumentParser" in text and "nd.load(" in text):
            loading.append(recipe.name)
            assert '"--device"' in text, recipe
            assert "device=args.device" in text or "args.device)" in text, recipe
    assert len(loading) >= 8


def test_encoders_and_judges_go_there_too(gpus: Gone, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "bee"]))
    config = BertConfig(
        vocab_size=7,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path)
    BertTokenizer(str(words)).save_pretrained(tmp_path)
    encoders.language_model(tmp_path)
    encoders.language_model(tmp_path, device="cuda:1")
    assert [place for place, _ in gpus if place] == ["cuda", "cuda:1"]
    hf = BertModel(config)
    with pytest.raises(ValueError, match="a model in hand stays where it is"):
        encoders.language_model(hf, BertTokenizer(str(words)), device="cpu")


def test_workers_of_a_cluster_take_a_device() -> None:
    assert Cluster("demo", device="cuda").options == {"device": "cuda"}
    assert Cluster("demo", options={"dtype": torch.float32}).options == {"dtype": torch.float32}
    with pytest.raises(ValueError, match="say two devices: give one"):
        Cluster("demo", options={"device": "cpu"}, device="cuda")


# -- room --------------------------------------------------------------------------------------------------------


def bytes_of(hf: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in hf.parameters()}.values())


def test_weights_by_layer_are_those_of_the_model() -> None:
    small = tiny_families.build("internvl")
    found = Weights.of(small.model, nd.load(small.model, processor=small.processor, check=False).family)
    buffers = sum(b.numel() * b.element_size() for b in small.model.buffers())
    assert found.whole == bytes_of(small.model) + buffers
    assert found.head == 4 * small.model.model.language_model.norm.weight.numel()  # the head is the embedding
    assert len(set(found.blocks)) == 1
    assert found.fitting(found.base + 2 * found.blocks[0]) == 2
    assert found.fitting(found.base) == 0


def test_what_does_not_fit_is_said_before_loading(
    gpus: Gone, tiny_folder: Path, tiny_parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, _ = tiny_parts
    whole = bytes_of(hf)
    block = bytes_of(hf.model.language_model.layers[0])
    free = (whole - 2 * block) // 2 + 5000  # in bfloat16, as it would be on a GPU
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 80 * GB))
    with pytest.raises(ValueError, match=r"does not fit on cuda: its weights take") as error:
        nd.load(tiny_folder, check=False)
    words = str(error.value)
    assert "its first 2 of 4 layers without a head (up_to_layer=2, head=False)" in words
    assert "device='cpu'" in words
    assert not gpus  # nothing was read
    nd.load(tiny_folder, up_to_layer=2, head=False, check=False)  # as it says
    nd.load(tiny_folder, device="cpu", check=False)
    assert [place for place, _ in gpus] == ["cuda", "cpu"]
    with pytest.raises(ValueError, match=r"dtype=torch.bfloat16, in which it takes"):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (whole - 100, 80 * GB))
        nd.load(tiny_folder, dtype=torch.float32, check=False)


def test_memory_of_the_machine_is_a_warning(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_free_here", lambda: 1000)
    with pytest.warns(UserWarning, match=r"does not fit on cpu: .* What would fit: .*remote=True"):
        vlm = nd.load(tiny_folder, check=False)
    assert vlm.layers == 4


def test_a_step_that_hardly_fits_is_said(gpus: Gone, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = os.path.getsize(tiny_folder / "model.safetensors")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (stored, 80 * GB))
    with pytest.warns(UserWarning, match=r"weights of .* fit on cuda, but an ascent's step at layer 4 takes"):
        nd.load(tiny_folder, check=False)


# -- weights that are not there ----------------------------------------------------------------------------------


@pytest.fixture
def short(tiny_folder: Path, tmp_path: Path) -> Path:
    """A config that says 6 layers over weights of 4."""
    folder = tmp_path / "short"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 6
    kinds = config["text_config"].get("layer_types")
    if kinds:
        config["text_config"]["layer_types"] = [*kinds, *kinds[:2]]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


DOORS: dict[str, Callable[[Path], Any]] = {
    "folder": nd.load,
    "str": lambda x: nd.load(str(x)),
    "up_to_layer": lambda x: nd.load(x, up_to_layer=5),
    "headless": lambda x: nd.load(x, head=False),
    "unchecked": lambda x: nd.load(x, check=False),
    "local": lambda x: nd.load(x, remote="local"),
    "mapped": lambda x: nd.load(x, device_map="cpu"),
    "ignored": lambda x: nd.load(x, ignore_mismatched_sizes=True),
    "VLMJudge": nd.VLMJudge,
}


@pytest.mark.parametrize("door", DOORS)
def test_layers_that_the_weights_lack_are_an_error(door: str, short: Path) -> None:
    words = r"holds no weights for \S*layers\.4\.\S+, .*which would be drawn at random"
    with pytest.raises(ValueError, match=words) as error:
        DOORS[door](short)
    if door != "VLMJudge":
        assert "Layers 1 to 4 are whole: up_to_layer=4 loads these alone" in str(error.value)


def test_the_layers_that_are_whole_load(short: Path, tiny_vlm: nd.VLM) -> None:
    vlm = nd.load(short, up_to_layer=4, check=False)
    picture = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    found, whole = (nd.read_pictures(v, picture, [4])[nd.Site(4)] for v in (vlm, tiny_vlm))
    assert torch.equal(found, whole)


def test_the_command_names_them(short: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["synthesize", "fox", "--model", str(short), "--steps", "1", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    told = capsys.readouterr()
    assert "holds no weights for model.language_model.layers.4." in told.err
    assert not (tmp_path / "out").exists()


def test_weights_of_another_shape_are_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reshaped"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    for options in ({}, {"up_to_layer": 2}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match=r"weights of another shape for \S*layers\.0\.mlp\.down_proj.weight \(\("):
            nd.load(folder, **options)


def test_more_layers_than_the_config_says_are_told(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tall"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    if config["text_config"].get("layer_types"):
        config["text_config"]["layer_types"] = config["text_config"]["layer_types"][:3]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"holds weights of blocks that its config says nothing of \(\S*layers\.3\."):
        assert nd.load(folder, check=False).layers == 3


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    """A ViT as classifiers are saved, so without the pooler that AutoModel adds."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    return tmp_path


def without(folder: Path, gone: str) -> None:
    file = folder / "model.safetensors"
    kept = load_file(file)
    assert any(gone in name for name in kept)
    save_file({k: v for k, v in kept.items() if gone not in k}, file, {"format": "pt"})


def test_an_encoder_needs_its_blocks_and_what_comes_before(vision: Path) -> None:
    picture = Image.new("RGB", (16, 16), "red")
    before = encoders.vision_model(vision).read([picture], [3])[3]
    without(vision, "vit.layernorm")  # after the last block
    assert torch.equal(encoders.vision_model(vision).read([picture], [3])[3], before)
    without(vision, "layer.2.")
    with pytest.raises(ValueError, match=r"holds no weights for encoder.layer.2\.|holds no weights for layers.2\."):
        encoders.vision_model(vision)


def test_an_encoder_without_embeddings(vision: Path) -> None:
    without(vision, "embeddings.cls_token")
    with pytest.raises(ValueError, match=r"holds no weights for embeddings.cls_token \(1 missing in all\)"):
        encoders.vision_model(vision)


def test_judges_need_all_of_their_weights(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 9, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    without(tmp_path, "text_projection")
    with pytest.raises(ValueError, match=r"holds no weights for text_projection\.weight"):
        nd.ZeroShotJudge(tmp_path, processor=object(), names=["fox"])


# -- positions ---------------------------------------------------------------------------------------------------


def test_texts_beyond_the_positions_are_an_error(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    vlm = nd.load(hf, processor=processor, check=False)
    most = hf.config.text_config.max_position_embeddings
    ids = torch.ones(1, most + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=f"a text is {most + 1} tokens long, and .* has positions for {most}; shorten"):
        nd.read_text(vlm, ids, torch.ones_like(ids), [1])
    nd.read_text(vlm, ids[:, :8], torch.ones(1, 8, dtype=torch.long), [1])
    with pytest.raises(ValueError, match="tokens long, and"):
        nd.concept(vlm, "fox " * most, layer=1)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_a_language_model_takes_texts_up_to_its_last_position(kind: str) -> None:
    from transformers import GPT2Config, GPT2Model, RobertaConfig, RobertaModel

    if kind == "gpt2":
        hf: Any = GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2, n_positions=12))
    else:
        config = RobertaConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=14, pad_token_id=1,
        )  # fmt: skip
        hf = RobertaModel(config)

    class Words:
        """A token a word."""

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [5] * len(text.split()), "special_tokens_mask": [0] * len(text.split())}

        def get_vocab(self) -> dict[str, int]:
            return {"fox": 5}

    encoder = encoders.language_model(hf.eval(), Words(), name="small")
    assert encoder.read(["fox " * 12], [1])[1].shape == (1, 8)
    with pytest.raises(ValueError, match="a text is 13 tokens long, and small has positions for 12; shorten it"):
        encoder.read(["fox " * 13], [1])
