"""What one step of an ascent costs: ours, a hand-cut torch loop, and what a user writes first. One table, ratios.

    python benchmarks/step.py [--quick] [--rounds N] [--families [NAME ...]]

hand-cut   plain torch: a private exception in a forward hook after the block, masks made once, weights frozen
full hook  a forward hook on the block and the whole model run, with its head, masks built anew, weights as they come
ours       reading and gradient as a step of an ascent does them; what is entered once a climb is entered before

All three get the same pixels, the same prompt and take the gradient of the same number with respect to the pixels;
the table says how far the gradients differ. Variants are timed in turn, round by round; medians and ratios are given.
With --families there is a row for a tiny random model of every family instead: layer 2 of 4, one picture, packed by the
family's record; the full hook gets what the family's own processor makes of a picture and a question, tiles included,
and its gradient is taken at those pixels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_families

import nnsight_dream as nd


class _Reached(Exception):
    pass


def hand_cut(vlm: nd.VLM, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's own root module, stopped by an exception after `layer` blocks; masks are made once."""
    from nnsight_dream.models.reading import constants as constants_of

    constants = constants_of(vlm)  # built by one forward of the model; data, not code under test
    block = vlm.hf.get_submodule(f"{vlm.family.layers}.{layer - 1}")
    root = vlm.hf.get_submodule(vlm.family.root)
    places = vlm.image_prompt.positions
    caught: list[torch.Tensor] = []

    def catch(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        caught.append(output)
        raise _Reached

    def run(pictures: torch.Tensor) -> torch.Tensor:
        handle = block.register_forward_hook(catch)
        try:
            root(
                input_ids=constants["input_ids"].expand(len(pictures), -1),
                attention_mask=constants["attention_mask"],
                pixel_values=2 * pictures - 1,
                use_cache=False,
            )
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught.pop()[:, places]

    return run


def full_hook(vlm: nd.VLM, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What one writes first: hook the block, run the model."""
    block = vlm.hf.get_submodule(f"{vlm.family.layers}.{layer - 1}")
    ids, places = vlm.image_prompt.ids[None], vlm.image_prompt.positions
    # the whole prompt, as the processor gives it
    picture = torch.zeros(1, 3, *vlm.image_size)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]}]
    text = vlm.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = vlm.processor(
        text=[text], images=[[picture[0]]], add_special_tokens=False, do_rescale=False, return_tensors="pt"
    )
    ids = ids["input_ids"]
    caught: list[torch.Tensor] = []

    def run(pictures: torch.Tensor) -> torch.Tensor:
        handle = block.register_forward_hook(lambda module, args, output: caught.append(output))
        rows = ids.expand(len(pictures), -1)
        vlm.hf(
            input_ids=rows,
            pixel_values=2 * pictures - 1,
            token_type_ids=(rows == vlm.config.image_token_id).long(),
        )
        handle.remove()
        return caught.pop()[:, places]

    return run


def ours(vlm: nd.VLM, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """As a step of an ascent does it."""
    from nnsight_dream.engine.read import reader
    from nnsight_dream.models.reading import reading

    site = vlm.site(layer)
    read, _ = reader(vlm.model, reading(vlm, [site], pictures=True))
    return lambda pictures: read(pictures)[site]


def timed(run: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds for one forward and backward, and the gradient at the pixels."""
    x = pictures.clone().requires_grad_(True)
    began = time.perf_counter()
    patches = run(x)
    weight = torch.linspace(-1, 1, patches.shape[-1])
    (gradient,) = torch.autograd.grad((patches @ weight).mean(), x)
    return time.perf_counter() - began, gradient


def flops(vlm: nd.VLM, layer: int, pictures: torch.Tensor) -> float:
    """Counted floating-point operations of one forward and backward, by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        timed(hand_cut(vlm, layer), pictures)
    return counter.get_total_flops()


def peak(threads: int) -> float:
    """Measured floating-point operations per second of a 1024 x 1024 matrix product."""
    a = torch.randn(1024, 1024)
    a @ a
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


def hand_cut_family(vlm: nd.VLM, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `hand_cut`, with the inputs that any family needs."""
    from nnsight_dream.engine.read import pixel_inputs
    from nnsight_dream.models.reading import constants as constants_of
    from nnsight_dream.models.reading import reading

    constants, places, how = constants_of(vlm), vlm.image_prompt.positions, reading(vlm, [])
    block, root = (vlm.hf.get_submodule(p) for p in (f"{vlm.family.layers}.{layer - 1}", vlm.family.root))
    caught: list[torch.Tensor] = []

    def catch(module: torch.nn.Module, args: tuple, output: object) -> None:
        caught.append(vlm.family.states(output, vlm.config))
        raise _Reached

    def run(pictures: torch.Tensor) -> torch.Tensor:
        handle = block.register_forward_hook(catch)
        try:
            root(**constants, **pixel_inputs(how, root, pictures, vlm.device, vlm.dtype), use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught.pop()[:, places]

    return run


def full_hook_family(
    vlm: nd.VLM, parts: tiny_families.Miniature, layer: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """As `full_hook`, and the pixels to be given to it, as the family's own processor makes them."""
    from PIL import Image

    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]}]
    options = {} if parts.bare else {"add_special_tokens": False}
    grey = [[Image.new("RGB", (parts.size[1], parts.size[0]), (120, 130, 140))]]
    encoded = parts.processor(text=[parts.prompt(turn)], images=grey, return_tensors="pt", **options, **parts.options)
    inputs = {k: v for k, v in encoded.items() if k in (parts.inputs or encoded)}
    places = (inputs["input_ids"][0] == vlm.config.image_token_id).nonzero().flatten()
    block = vlm.hf.get_submodule(f"{vlm.family.layers}.{layer - 1}")
    caught: list[torch.Tensor] = []

    def run(pixels: torch.Tensor) -> torch.Tensor:
        keep = block.register_forward_hook(lambda m, a, output: caught.append(vlm.family.states(output, vlm.config)))
        parts.model(**{**inputs, "pixel_values": pixels})
        keep.remove()
        return caught.pop()[:, places]

    return run, inputs["pixel_values"]


def family_rows(names: list[str], rounds: int) -> None:
    """A row for each family's tiny model."""
    print("| family | hand-cut ms | ours ms | full hook ms | ours / hand-cut | full / ours | gradient differs |")
    print("|---|---|---|---|---|---|---|")
    for name in names or list(tiny_families.BUILDERS):
        parts = tiny_families.build(name)
        vlm = nd.load(parts.model, processor=parts.processor, check=False, **{**parts.load, **parts.climb})
        pictures = torch.rand(1, 3, *vlm.image_size, generator=torch.Generator().manual_seed(0))
        full, pixels = full_hook_family(vlm, parts, 2)
        runs = {"hand": (hand_cut_family(vlm, 2), pictures), "ours": (ours(vlm, 2), pictures)}
        if vlm.straight_through is None:  # else no gradient passes the model's own way
            runs["full"] = (full, pixels)
        spent: dict[str, list[float]] = {k: [] for k in runs}
        gradients = {}
        for _ in range(rounds + 1):
            for key, (run, x) in runs.items():
                if key != "full":
                    with vlm.quiet():
                        seconds, gradients[key] = timed(run, x)
                else:
                    seconds, gradients[key] = timed(run, x)
                spent[key].append(1e3 * seconds)
        hand, mine = (statistics.median(spent[k][1:]) for k in ("hand", "ours"))
        ratio = statistics.median(b / a for a, b in zip(spent["hand"][1:], spent["ours"][1:], strict=True))
        whole = gain = "-"
        if "full" in runs:
            whole = f"{statistics.median(spent['full'][1:]):.1f}"
            pairs = zip(spent["ours"][1:], spent["full"][1:], strict=True)
            gain = f"{statistics.median(b / a for a, b in pairs):.2f}"
        off = (gradients["ours"] - gradients["hand"]).abs().max() / gradients["hand"].abs().max()
        print(f"| {name} | {hand:.1f} | {mine:.1f} | {whole} | {ratio:.2f} | {gain} | {off:.1e} |", flush=True)


def mid_size() -> tuple[torch.nn.Module, object]:
    """A random Gemma 3 of 12 blocks 512 wide, with a tower of 12 layers that sees 224 pixels, and its processor."""
    import tiny

    return tiny.gemma3(
        layers=12,
        hidden=512,
        heads=8,
        image=224,
        patch=14,
        grid=8,
        vision_layers=12,
        vision_hidden=384,
        vocabulary=400,
    )


def models(quick: bool) -> list[tuple[str, nd.VLM, list[int], int]]:
    """(name, model, layers, batch) for each row."""
    import tiny

    rows = [("demo", nd.load("demo", check=False), [1, 4, 8], 4)]
    hf, processor = tiny.gemma3(layers=4)
    rows.append(("tiny 4 x 32", nd.load(hf, processor=processor, check=False), [1], 2))
    if not quick:
        hf, processor = mid_size()
        rows.append(("mid 12 x 512, 224 px", nd.load(hf, processor=processor, check=False), [1, 6, 12], 1))
        hf, processor = tiny.gemma3(
            layers=12,
            hidden=512,
            heads=8,
            image=64,
            patch=8,
            grid=8,
            vision_layers=2,
            vision_hidden=128,
            vocabulary=400,
        )
        rows.append(("language-heavy 12 x 512", nd.load(hf, processor=processor, check=False), [1], 1))
    return rows


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="the small models only")
    parser.add_argument(
        "--families", nargs="*", metavar="NAME", help="tiny models of these families (all), and no others"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.families is not None:
        if unknown := [n for n in args.families if n not in tiny_families.BUILDERS]:
            parser.error(f"--families {' '.join(unknown)}: there are {', '.join(tiny_families.BUILDERS)}")
        print(f"{args.threads} thread(s), float32; medians of {args.rounds} rounds\n")
        family_rows(args.families, args.rounds)
        return
    top = peak(args.threads)
    print(
        f"{args.threads} thread(s), float32; matrix product peak {top / 1e9:.0f} GFLOP/s; medians of {args.rounds} rounds"
    )
    print(
        "| model | layer | batch | hand-cut ms | ours ms | full hook ms | ours / hand-cut | full / ours | FLOP/peak | gradient differs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, vlm, layers, batch in models(args.quick):
        pictures = torch.rand(batch, 3, *vlm.image_size, generator=torch.Generator().manual_seed(0))
        for layer in layers:
            runs = {"hand": hand_cut(vlm, layer), "ours": ours(vlm, layer), "full": full_hook(vlm, layer)}
            spent: dict[str, list[float]] = {k: [] for k in runs}
            gradients = {}
            for _ in range(args.rounds + 1):
                for key, run in runs.items():
                    if key != "full":
                        with vlm.quiet():
                            seconds, gradients[key] = timed(run, pictures)
                    else:
                        seconds, gradients[key] = timed(run, pictures)
                    spent[key].append(seconds)
            hand, mine, full = (statistics.median(spent[k][1:]) for k in ("hand", "ours", "full"))
            ratio = statistics.median(b / a for a, b in zip(spent["hand"][1:], spent["ours"][1:], strict=True))
            gain = statistics.median(b / a for a, b in zip(spent["ours"][1:], spent["full"][1:], strict=True))
            off = (gradients["ours"] - gradients["hand"]).abs().max() / gradients["hand"].abs().max()
            used = flops(vlm, layer, pictures) / hand / top
            print(
                f"| {name} | {layer} of {vlm.layers} | {batch} | {1e3 * hand:.1f} | {1e3 * mine:.1f} | {1e3 * full:.1f} | "
                f"{ratio:.2f} | {gain:.2f} | {used:.0%} | {off:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
