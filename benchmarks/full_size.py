"""A step at real sizes: models of random weights, cut at layer 1, against their estimate. Needs 12 GB of free memory.

    python benchmarks/full_size.py [gemma3_4b internvl3_8b] [--threads N] [--dtype float32]

Each model is built in a process of its own and does one step of a climb with a batch of 1, after its masks were made.
The peak is the most memory that the process had resident. glibc keeps what is freed of blocks below 32 MB in its heap,
in pieces (a sixteen-layer tower took a quarter more for its step so); here blocks from 64 kB go back at once, by
MALLOC_MMAP_THRESHOLD_. `--heap` leaves glibc as it is. Time is by the CPU's own clock: other programs do not count.
Sizes are those of the public configs; the tokenizers are miniatures, of about as many tokens before the picture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def gemma3_4b() -> tuple[Any, Any]:
    """google/gemma-3-4b: SigLIP so400m at 896 px, 256 image tokens, 34 blocks of width 2560."""
    import tiny
    import transformers as hf

    processor = tiny.processor(896, 256)
    ids = {name: processor.tokenizer.convert_tokens_to_ids(token) for name, token in tiny.IMAGE.items()}
    config = hf.Gemma3Config(
        text_config=dict(
            vocab_size=262208,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=34,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=1024,
        ),
        vision_config=dict(
            model_type="siglip_vision_model",
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=896,
            patch_size=14,
            vision_use_head=False,
        ),
        mm_tokens_per_image=256,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    return config, processor


def internvl3_8b() -> tuple[Any, Any]:
    """OpenGVLab/InternVL3-8B-hf: InternViT 300M at 448 px, 256 image tokens, 28 blocks of width 3584 (Qwen2.5 7B)."""
    import tiny_families
    import transformers as hf

    processor = tiny_families.build("internvl").processor
    processor.image_processor.size = {"height": 448, "width": 448}
    processor.image_seq_length = 256
    config = hf.InternVLConfig(
        text_config=dict(
            model_type="qwen2",
            vocab_size=151674,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            tie_word_embeddings=False,
        ),
        vision_config=dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=448,
            patch_size=14,
        ),
        tie_word_embeddings=False,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=256,
        downsample_ratio=0.5,
    )
    return config, processor


MODELS = {"gemma3_4b": gemma3_4b, "internvl3_8b": internvl3_8b}


def cut(config: Any, dtype: torch.dtype, layers: int | None = 1, device: str = "cpu") -> Any:
    """The model up to a block (None: all), without a head, of random weights that let a gradient through."""
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    text = config.get_text_config()
    text.num_hidden_layers = layers or text.num_hidden_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with no_init_weights(), torch.device(device):
        hf = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    hf.lm_head = torch.nn.Identity()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.normal_(0, scale, generator=generator)
            if weight.ndim < 2 and name.endswith("weight"):
                weight.add_(1)
    return hf


def _status(line: str) -> int:
    """A line of Linux's account of this process, in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) * 1024


def measure(name: str, dtype: torch.dtype) -> dict[str, float]:
    """Peak memory in bytes, seconds for the step, and by the CPU's own clock, of all threads together."""
    import nnsight_dream as nd
    from nnsight_dream.models.reading import constants

    config, processor = MODELS[name]()
    imported = _status("VmRSS")
    vlm = nd.load(cut(config, dtype), processor=processor, check=False)
    built = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    values = torch.randn(vlm.width, generator=torch.Generator().manual_seed(1))
    settings = nd.Settings(
        steps=1,
        batch=1,
        canvas=nd.MultiResolution(448),
        augment=(nd.Shift(), nd.Noise(0.2)),
        centre=torch.zeros(vlm.width),
    )
    constants(vlm)  # made once for all steps
    marks = [(time.perf_counter(), time.process_time())]
    nd.synthesize(
        vlm,
        nd.from_tensor(vlm, values, 1),
        settings=settings,
        progress=lambda step, score: marks.append((time.perf_counter(), time.process_time())),
    )
    (wall, cpu) = (b - a for a, b in zip(*marks, strict=True))
    peak = _status("VmHWM")
    return {"imported": imported, "built": built, "peak": peak, "seconds": wall, "cpu": cpu}


def main() -> None:
    """Estimate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--heap", action="store_true", help="leave freed memory to glibc's heap")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or list(MODELS)
    if wrong := [name for name in args.model if name not in MODELS]:
        parser.error(f"no model {wrong[0]!r}: there are {', '.join(MODELS)}")
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    if args.measure:
        print(json.dumps(measure(args.model[0], dtype)))
        return
    from nnsight_dream.models.estimate import estimate
    from nnsight_dream.models.rates import cpu_rate

    for name in args.model:
        config, processor = MODELS[name]()
        cost = estimate(config, 1, dtype=dtype, processor=processor)
        before = cpu_rate(dtype)
        options = ["--measure", "--threads", str(args.threads), "--dtype", args.dtype]
        environment = {} if args.heap else {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(
            [sys.executable, __file__, name, *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        seen = json.loads(done.stdout.splitlines()[-1])
        after = cpu_rate(dtype)
        print(f"{name}, {args.dtype}, layer 1, batch 1, {args.threads} thread(s)")
        print(f"  {cost.grid[0]} x {cost.grid[1]} image tokens of {cost.prompt_tokens}; FLOPs", dict(cost.flops))
        for rate in (before, after):
            print(f"  rate {rate.flops / 1e9:.0f} GFLOP/s, {rate.bytes / 1e9:.1f} GB/s: {cost.seconds(rate):.1f} s")
        print(f"  weights {dict(cost.weights)}, kept {dict(cost.kept)}, workspace {cost.workspace}")
        print(f"  {seen}")
        print(
            f"  memory: estimate {cost.memory / 1e9:.2f} GB, peak {seen['peak'] / 1e9:.2f} GB "
            f"({cost.memory / seen['peak'] - 1:+.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
