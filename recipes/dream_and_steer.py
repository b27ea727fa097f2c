# %% [markdown]
# # What does a steering vector look like?
#
# A steering vector is judged by what it does to text. Its picture says what it means to the model before a word is
# written: here a direction is dreamed, the model's text is steered with it at growing strength, and both are shown side
# by side, with the same direction taken out for comparison.
#
#     python recipes/dream_and_steer.py                        strawberry minus bus, at layer 1 of the bundled model
#     python recipes/dream_and_steer.py --word fox --minus car
#     python recipes/dream_and_steer.py --model google/gemma-3-4b-it --layer 10 --add 1 2 4 --say "Tell me a story."
#     python recipes/dream_and_steer.py --quick                few steps

# %%
from __future__ import annotations

import argparse
import html
from pathlib import Path
from typing import Any

import torch

import nnsight_dream as nd
from nnsight_dream.io.files import check_folder, option_path

QUICK = ["--quick"]


# %% [markdown]
# ## Text
# The model answers as Hugging Face has it answer; the direction's hook sits on the block that the direction was read at.


# %%
def answer(vlm: nd.VLM, say: str, hook: Any = None, layer: int = 1, most: int = 16) -> str:
    """What the model answers, with a hook on what a block gives, if there is one."""
    inputs = vlm.tokenizer.apply_chat_template(
        [{"role": "user", "content": say}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(vlm.device)
    block = vlm.hf.get_submodule(vlm.hf_name(nd.Site(layer)).removesuffix(".output"))
    handle = None if hook is None else block.register_forward_hook(hook)
    try:
        written = vlm.hf.generate(**inputs, max_new_tokens=most, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    finally:
        if handle is not None:
            handle.remove()
    return vlm.tokenizer.decode(written, skip_special_tokens=True).strip()


def steered(vlm: nd.VLM, direction: nd.Direction, say: str, factors: list[float]) -> dict[str, str]:
    """Answers by what was done: nothing, the direction added so many times, the direction taken out."""
    layer = direction.site.layer
    answers = {"as it is": answer(vlm, say)}
    for factor in factors:
        answers[f"{factor:+g} times"] = answer(vlm, say, direction.hook(factor), layer)
    answers["taken out"] = answer(vlm, say, direction.hook(ablate=True), layer)
    return answers


# %% [markdown]
# ## Side by side


# %%
def page(prototype: nd.Prototype, say: str, answers: dict[str, str]) -> str:
    """The picture, and the answers beside it, as HTML that a notebook shows too."""
    rows = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{html.escape(v) or '(nothing)'}</td></tr>" for k, v in answers.items()
    )
    return (
        f'<div style="display:flex;gap:2em;font:14px sans-serif"><div>{prototype._repr_html_()}</div>'
        f"<table><caption>{html.escape(say)}</caption>{rows}</table></div>"
    )


# %%
def main() -> None:
    """Dream, steer, show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--word", default="strawberry")
    parser.add_argument("--minus", default="bus", help="what is subtracted, so that what all words share goes")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--add", type=float, nargs="+", default=[0.1, 0.25], help="multiples of the direction")
    parser.add_argument("--say", default="Tell me about an animal.")
    parser.add_argument("--folder", type=option_path, default=Path("build/dream-and-steer"))
    parser.add_argument("--quick", action="store_true", help="few steps")
    args = parser.parse_args()
    folder = check_folder(args.folder)
    vlm = nd.load(args.model, device=args.device)
    direction = nd.concept(vlm, args.word, layer=args.layer) - nd.concept(vlm, args.minus, layer=args.layer)
    prototype = nd.synthesize(vlm, direction, **({"steps": 10} if args.quick else {}))
    answers = steered(vlm, direction, args.say, args.add)
    if args.model == "demo" and args.word == "strawberry":  # the bundled model is known: what is shown here holds
        assert answers["+0.25 times"] != answers["as it is"]
        assert answer(vlm, args.say) == answers["as it is"]  # the hooks are gone
    for done, words in answers.items():
        print(f"{done:12} {words or '(nothing)'}")
    edited = direction.edit(vlm, args.add[-1])  # the same for nnsight, which traces, and reads, steered
    ids = torch.tensor([vlm.tokenizer(args.say)["input_ids"]])
    (before,), (after,) = (
        nd.read_text(v, ids, torch.ones_like(ids), [args.layer]).values()
        for v in (vlm, nd.load(edited, processor=vlm.processor, check=False))
    )
    shift = (after - before).norm(dim=-1).mean() / before.norm(dim=-1).mean()
    print(f"{direction.label}, {args.add[-1]:+g} times, is {shift:.0%} of an activation's norm at {direction.site}")
    prototype.save(folder / "prototype")
    (folder / "side-by-side.html").write_text(page(prototype, args.say, answers), encoding="utf-8")
    print(f"see {folder / 'side-by-side.html'}")


if __name__ == "__main__":
    main()
