"""Preference: whether the picture that aligns better with a prompt is the one that people, or other scores, prefer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..judges.named import loaded, placed, worded
from ..state.changes import still
from ..stats.intervals import bootstrap, wilson
from ..stats.scales import scaled
from ..stats.scores import Score, at_least
from ..stats.similarity import matrix, ranks
from .experiments import L_TO_V, V_TO_L, captions_of, check_pairs, check_sides, groups_of, one_layer

if TYPE_CHECKING:
    from ..stats.ridge import Predictivity
    from .encoders import Encoder
    from .experiments import Folder, Setting
    from .pairs import Pair


@dataclass(frozen=True)
class Choice:
    """A prompt, two pictures (PIL) made for it, and which of them people chose, 0 or 1."""

    prompt: str
    pictures: tuple[Any, Any]
    chosen: int

    def __post_init__(self) -> None:
        if self.chosen not in (0, 1) or len(self.pictures) != 2:
            raise ValueError(f"{self.prompt!r}: two pictures and chosen=0 or 1 are needed; got chosen={self.chosen!r}")


def fit_of_items(score: Predictivity) -> np.ndarray:
    """How well each item's own prediction fits, (n,): the correlation over units of predicted and target."""
    p, t = scaled(score.predicted, axis=1), scaled(score.target, axis=1)
    p, t = p - p.mean(1, keepdims=True), t - t.mean(1, keepdims=True)
    norm = np.linalg.norm(p, axis=1) * np.linalg.norm(t, axis=1)
    return (p * t).sum(1) / np.where(norm > 0, norm, 1)


def preference(
    vision: Encoder, language: Encoder, choices: Sequence[Choice], setting: Setting, *, folder: Folder = None
) -> list[dict[str, Any]]:
    """Whether, of two pictures made for a prompt, the one that aligns better with it is the one that people chose.

    Maps are fitted to the other folds' prompts with both their pictures, so that they know nothing of choices. A row
    for each direction: `rate`, the share of held-out choices that agree (ties by half) with Wilson's interval low to
    high, `chance` 0.5, and p, of a two-sided sign test by swapping which was chosen.

    Raises ValueError for fewer than fifteen choices.
    """
    check_sides(vision, language)
    if not choices:
        raise ValueError("no choices: at least 15 are needed, three for each of five folds")
    pictures = [p for c in choices for p in c.pictures]
    vision_features = one_layer(vision, pictures, setting.layers[0], folder)
    language_features = np.repeat(
        one_layer(language, [c.prompt for c in choices], setting.layers[1], folder), 2, axis=0
    )
    prompts = {c.prompt: i for i, c in enumerate(choices)}
    groups = np.repeat([prompts[c.prompt] for c in choices], 2)
    chosen = np.array([c.chosen for c in choices])
    random = np.random.default_rng(setting.seed)
    rows = []
    for direction, x, y in ((L_TO_V, language_features, vision_features), (V_TO_L, vision_features, language_features)):
        fits = fit_of_items(setting.predict(x, y, groups)).reshape(-1, 2)
        gap = fits[np.arange(len(chosen)), chosen] - fits[np.arange(len(chosen)), 1 - chosen]
        agree = np.sign(gap) / 2 + 0.5
        swapped = np.abs((random.integers(0, 2, (setting.draws, len(agree))) * 2 - 1) @ np.sign(gap))
        p = (1 + int((swapped >= abs(np.sign(gap).sum())).sum())) / (1 + setting.draws)
        whole = set(agree.tolist()) <= {0.0, 1.0}
        low, high = wilson(int(agree.sum()), len(agree)) if whole else bootstrap(agree.tolist(), seed=setting.seed)
        row = dict(rate=float(agree.mean()), low=low, high=high, chance=0.5, p=p, n=len(agree))
        rows.append(dict(direction=direction, **row))
    return rows


def clip_scores(
    model: Any, pairs: Sequence[Pair], processor: Any = None, *, caption: int = 0, batch: int = 16, **options: Any
) -> np.ndarray:
    """How well a dual encoder, such as CLIP or SigLIP, finds each pair to match: cosines (n,), for `rank_agreement`.

    model      a hub id, a folder, or a loaded model with its `processor`;  `options` go to `from_pretrained`;
               `device=`, the best there is if not given
    batch      how many pairs at a time

    Raises ValueError for no pairs, missing captions and captions of more tokens than it has positions, TypeError for a
    model that is no dual encoder.
    """
    at_least(batch=batch)
    if not pairs:
        raise ValueError("no pairs: at least one is needed")
    model, processor, name = loaded(model, processor, "AutoModel", options)
    if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
        raise TypeError(f"{name} ({type(model).__name__}) is no dual encoder: give a CLIP or SigLIP model")
    texts, scores = captions_of(pairs, caption), []
    texts, length = worded(texts, model, processor, name)
    for begin in range(0, len(pairs), batch):
        some = slice(begin, begin + batch)
        sides = []
        images = [p.image for p in pairs[some]]
        for kind, inputs in (("image", dict(images=images)), ("text", dict(text=texts[some], **length))):
            with still(model):
                out = getattr(model, f"get_{kind}_features")(**placed(processor(**inputs, return_tensors="pt"), model))
            vectors = out if hasattr(out, "norm") else out.pooler_output
            sides.append((vectors / vectors.norm(dim=-1, keepdim=True)).float().cpu().numpy())
        scores.append((sides[0] * sides[1]).sum(1))
    return np.concatenate(scores)


def rank_agreement(
    vision: Encoder,
    language: Encoder,
    pairs: Sequence[Pair],
    others: Sequence[float],
    setting: Setting,
    *,
    caption: int = 0,
    folder: Folder = None,
) -> list[dict[str, Any]]:
    """Spearman's rank correlation over pairs of how well held-out pairs align with other scores, such as CLIP's.

    others   (n,) one for each pair, greater for a better match

    A row for each direction: value with its bootstrap interval over groups, and p, one-sided, by permutation.
    Raises ValueError for unequal numbers, and scores that are not finite or all the same.
    """
    check_pairs(vision, language, pairs)
    other_scores = np.asarray(others, dtype=np.float64)
    if other_scores.shape != (len(pairs),):
        raise ValueError(
            f"others= has shape {other_scores.shape} for {len(pairs)} pairs: one number for each is needed"
        )
    matrix(other_scores[:, None], "others")
    groups = groups_of(pairs)
    vision_features = one_layer(vision, (p.image for p in pairs), setting.layers[0], folder)
    language_features = one_layer(language, captions_of(pairs, caption), setting.layers[1], folder)
    rows = []
    for direction, x, y in ((L_TO_V, language_features, vision_features), (V_TO_L, vision_features, language_features)):
        score = rank_score(fit_of_items(setting.predict(x, y, groups)), other_scores, groups)
        rows.append(dict(direction=direction) | score.row(setting.draws, seed=setting.seed))
    return rows


def rank_score(a: np.ndarray, b: np.ndarray, groups: np.ndarray | None) -> Score:
    """Spearman's correlation of two lists as a Score."""

    def spearman(x: np.ndarray, y: np.ndarray) -> float:
        u, v = ranks(x), ranks(y)
        return float(np.corrcoef(u, v)[0, 1]) if np.ptp(u) and np.ptp(v) else float("nan")

    def weighted(weights: np.ndarray) -> np.ndarray:
        samples = (np.repeat(np.arange(len(a)), w.astype(int)) for w in weights)
        return np.array([spearman(a[rows], b[rows]) for rows in samples])

    return Score("rank agreement", spearman(a, b), len(a), groups, None, lambda o: spearman(a, b[o]), weighted)
