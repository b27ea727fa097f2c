"""What only a GPU can show: parity with the CPU, determinism, types, several devices, memory, speed, torch.compile.

    python benchmarks/gpu.py [--only parity memory ...] [--models gemma3_4b internvl3_8b] [--device cuda:1]

One line for each check: ok, wrong or skipped, and its figures; then the tables. It ends with 1 where one is wrong, and
skips everything with a sentence where there is no GPU. Full sizes are those of the public configs, of random weights in
bfloat16 (8 and 15 GB); the other checks are on the bundled model. `--device cpu --models tiny` goes the same way without
a GPU, to try this file itself: its figures then mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import full_size
import torch
import torch._dynamo.utils
import torch.nn.functional as F

import nnsight_dream as nd
from nnsight_dream.checkup import numerics
from nnsight_dream.checkup.material import Material
from nnsight_dream.demo import bundle
from nnsight_dream.models import devices
from nnsight_dream.models.estimate import estimate
from nnsight_dream.models.rates import GPUS, gpu_rate
from nnsight_dream.models.reading import constants

OK, WRONG, SKIPPED = "ok", "wrong", "skipped"
Found = tuple[str, str]
STEPS = nd.Settings.demo().but(steps=20, batch=2)
MEMORY = 1.25  # times the estimate that a step's memory may be


def wait(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def drawn(vlm: nd.VLM, settings: nd.Settings = STEPS) -> Any:
    """A picture of the bundled model's, and its history."""
    return nd.synthesize(vlm, nd.concept(vlm, "octopus", 4, cache=False), settings=settings, progress=False)


def parity(device: torch.device) -> Found:
    """The bundled model there and on the CPU: activations, a word's vector, a climb."""
    here, there = nd.load("demo", device="cpu"), nd.load("demo", device=str(device))
    x = Material(here).picture
    patches = [nd.read_pictures(vlm, x.to(vlm.device), [8])[nd.Site(8)].cpu() for vlm in (here, there)]
    apart = float((patches[0] - patches[1]).norm() / patches[0].norm())
    words = nd.cosine(*(nd.concept(vlm, "octopus", 8, cache=False) for vlm in (here, there)))
    histories = [torch.tensor(drawn(vlm).history) for vlm in (here, there)]
    climb = float((histories[0] - histories[1]).abs().max())
    right = apart < 1e-4 and words > 0.9999 and climb < 0.02
    return (
        OK if right else WRONG,
        f"patches apart {apart:.1e}, words' cosine {words:.6f}, scores of a climb {climb:.1e}",
    )


def determinism(device: torch.device) -> Found:
    """The same seed twice, and alone or with another picture."""
    vlm = nd.load("demo", device=str(device))
    first, again = drawn(vlm), drawn(vlm)
    aim = nd.concept(vlm, "octopus", 4, cache=False)
    among = nd.synthesize(vlm, [aim, nd.concept(vlm, "fox", 4, cache=False)], settings=STEPS, progress=False)[0]
    apart = max(abs(a - b) for a, b in zip(first.history, among.history, strict=True))
    same = first.history == again.history and first.image.tobytes() == again.image.tobytes()
    words = "the same bits twice" if same else "not the same bits twice"
    return OK if same and apart < 0.02 else WRONG, f"{words}; alone and in a batch scores are {apart:.1e} apart"


def dtypes(device: torch.device) -> Found:
    """bfloat16 and float16 against float32 at three layers: the least cosine of patches and gradient."""
    exact = nd.load("demo", device=str(device))
    parts, right = [], True
    for kind in (torch.bfloat16, torch.float16):
        rows = [numerics.compared(Material(exact), numerics.twin(exact, kind, device), exact, n) for n in (1, 4, 8)]
        least = {name: min(row[name] for row in rows) for name in ("patches", "gradient", "gradient_small")}
        right &= least["patches"] > 0.999 and least["gradient"] > 0.98
        parts.append(f"{str(kind)[6:]} " + ", ".join(f"{name} {value:.4f}" for name, value in least.items()))
    return OK if right else WRONG, "; ".join(parts)


def several(device: torch.device) -> Found:
    """The bundled model's layers over all devices there are, by device_map."""
    places = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if device.type == "cuda" else ["cpu"]
    if len(places) < 2:
        return SKIPPED, f"there is one device ({places[0]}): two are needed"
    where: dict[str, Any] = {"model.vision_tower": 0, "model.multi_modal_projector": 0, "lm_head": 0}
    stack = "model.language_model"
    where |= {f"{stack}.embed_tokens": 0, f"{stack}.norm": len(places) - 1, f"{stack}.rotary_emb": 0}
    where |= {f"{stack}.layers.{n}": n * len(places) // 8 for n in range(8)}
    folder = bundle.folder() / "vlm"
    spread = nd.load(folder, device_map=where, dtype=torch.float32)
    alone = nd.load(folder, device=str(device), dtype=torch.float32)
    used = {str(p.device) for p in spread.hf.parameters()}
    histories = [torch.tensor(drawn(vlm).history) for vlm in (spread, alone)]
    apart = float((histories[0] - histories[1]).abs().max())
    right = len(used) == len(places) and apart < 0.02
    return OK if right else WRONG, f"over {', '.join(sorted(used))}; scores of a climb {apart:.1e} from those on one"


def compiled(device: torch.device) -> Found:
    """What torch.compile would give: the bundled model's own forward and backward pass, as it is and compiled.

    Modules that nnsight has wrapped are not compiled, so this is Hugging Face's model without it: no ascent runs so.
    """
    from transformers import AutoModelForImageTextToText

    vlm = nd.load("demo", device=str(device))
    inputs = vlm.question(bundle.pictures(["octopus"])[0].image, "What is this?")
    pixels = inputs.pop("pixel_values").repeat(2, 1, 1, 1).requires_grad_(True)
    inputs = {name: value.repeat(2, 1) for name, value in inputs.items()}
    torch._dynamo.utils.counters.clear()
    taken, slopes = [], []
    for compiles in (False, True):
        root = AutoModelForImageTextToText.from_pretrained(bundle.folder() / "vlm").to(device).eval().model
        run = torch.compile(root, dynamic=False) if compiles else root
        try:
            for step in range(8):
                if step == 3:
                    wait(device)
                    began = time.perf_counter()
                score = run(**inputs, pixel_values=pixels, use_cache=False).last_hidden_state.square().mean()
                (slope,) = torch.autograd.grad(score, pixels)
            wait(device)
        except Exception as error:  # no compiler on the machine, or a graph that it cannot make
            return SKIPPED, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        taken.append((time.perf_counter() - began) / 5)
        slopes.append(slope.flatten())
    alike = float(F.cosine_similarity(*slopes, dim=0))
    if not torch._dynamo.utils.counters["frames"]["ok"]:
        return SKIPPED, "torch.compile compiled nothing"
    text = f"two views in {taken[0] * 1e3:.1f} ms as it is, {taken[1] * 1e3:.1f} ms compiled; gradients' cosine {alike:.5f}"
    return OK if alike > 0.999 else WRONG, text


def seconds(vlm: nd.VLM, layer: int, batch: int, steps: int = 6, side: int = 448) -> float:
    """Seconds of a step, the first two not counted."""
    stamps: list[float] = []

    def watch(step: int, scores: torch.Tensor) -> None:
        wait(vlm.device)
        stamps.append(time.perf_counter())

    width = vlm.width_at(layer)
    aim = nd.from_tensor(vlm, torch.randn(width, generator=torch.Generator().manual_seed(1)), layer)
    settings = nd.Settings(
        steps=steps + 2, batch=batch, canvas=nd.MultiResolution(side), augment=(nd.Shift(), nd.Noise(0.2)),
        centre=torch.zeros(width),
    )  # fmt: skip
    nd.synthesize(vlm, aim, settings=settings, progress=watch)
    return (stamps[-1] - stamps[1]) / steps


def full(name: str, device: torch.device) -> tuple[Found, list[str]]:
    """A whole model of random weights: memory of a step against its estimate, and steps a second, by layer and batch."""
    config, processor = full_size.MODELS[name]() if name != "tiny" else tiny()
    whole = copy.deepcopy(config)
    depth = config.get_text_config().num_hidden_layers
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hf = full_size.cut(config, dtype, None, str(device))
    vlm = nd.load(hf, processor=processor, check=False)
    constants(vlm)
    lines, right = ["layer batch  estimate     peak  share   s/step  views/s  at least s"], True
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    rate = next((gpu_rate(gpu, str(dtype)[6:]) for gpu in GPUS if gpu in card), None)
    for layer in (1, depth // 2, depth):
        for batch in (1, 2, 4, 8):
            cost = estimate(whole, layer, batch=batch, dtype=dtype, device="cuda", processor=processor)
            if devices.free_bytes(device) is not None and cost.step_bytes > (devices.free_bytes(device) or 0):
                lines.append(f"{layer:5d} {batch:5d}  {cost.step_bytes / 1e9:6.2f} GB  more than is free")
                continue
            peak = 0
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            taken = seconds(vlm, layer, batch, 4 if device.type == "cuda" else 1)
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(device) - before
                right &= peak < MEMORY * cost.step_bytes + 3e8
            least = "" if rate is None else f"{cost.seconds(rate):10.3f}"
            lines.append(
                f"{layer:5d} {batch:5d}  {cost.step_bytes / 1e9:6.2f} GB {peak / 1e9:6.2f} GB  {peak / cost.step_bytes:5.2f}"
                f"  {taken:7.3f}  {batch / taken:7.2f}  {least}"
            )
    return (OK if right else WRONG, f"{depth} layers, {str(dtype)[6:]}; a table below"), lines


def tiny() -> tuple[Any, Any]:
    """A miniature's config and processor, to try this file."""
    import tiny as miniatures

    hf, processor = miniatures.gemma3()
    return hf.config, processor


CHECKS: dict[str, Callable[[torch.device], Found]] = {
    "parity": parity,
    "determinism": determinism,
    "types": dtypes,
    "several": several,
    "compile": compiled,
}


def main() -> int:
    """Check, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=(*CHECKS, "full"), default=[*CHECKS, "full"])
    parser.add_argument("--models", nargs="+", choices=(*full_size.MODELS, "tiny"), default=list(full_size.MODELS))
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no GPU here; what can be proved without one is in tests/test_device_of_a_step.py")
        return 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, nnsight-dream {nd.__version__}", flush=True)
    checks = {n: (lambda n=n: (CHECKS[n](device), [])) for n in CHECKS if n in args.only}
    checks |= {m: (lambda m=m: full(m, device)) for m in args.models if "full" in args.only}
    wrong, tables = False, []
    for check, run in checks.items():
        try:
            (state, message), lines = run()
        except Exception as error:
            state, message, lines = WRONG, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", []
        wrong |= state == WRONG
        print(f"{state:<8} {check}: {message}", flush=True)
        tables += [(check, lines)] if lines else []
    for check, lines in tables:
        print(f"\n{check}\n" + "\n".join(lines))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
