"""nnsight-dream: pictures of directions in vision-language models.

A direction (a concept from text, a probe, any vector) or a sparse autoencoder's feature at a site of a model is climbed
through traced patch activations to a prototype image: what it looks like. Public names in the order of the work;
nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "vlm": ("VLM", "load"),
    "sites": ("Site",),
    "families": ("Family",),
    "directions": ("Direction", "concept", "contrast", "cosine", "from_images", "from_tensor", "probe"),
    "features": ("Feature", "feature", "feature_from_tensors"),
    "latents": ("Latent",),
    "objectives": (
        "Attention",
        "Away",
        "Grey",
        "Max",
        "Mean",
        "NaturalNoise",
        "Objective",
        "Pictures",
        "TotalVariation",
    ),
    "canvas": ("Fourier", "MACO", "MultiResolution", "Native", "Pixels"),
    "augment": ("Noise", "Rotate", "Scale", "Shift"),
    "synthesis": ("Settings", "synthesize"),
    "detached": ("RemoteJob", "collect", "submit"),
    "hosted": ("Hosted", "remote_models"),
    "prototype": ("Prototype", "Prototypes"),
    "sae_reading": ("Active", "Candidate", "Strangeness", "candidates", "features_of", "strangeness"),
    "readouts": ("Logits", "top_logits"),
    "cards": ("Card", "Material"),
    "card_making": ("make_cards",),
    "feature_judging": ("judge_features",),
    "demo": ("demo_sae",),
    "trace": ("Step", "check", "read_pictures", "read_text"),
    "judges": ("DemoJudge", "Verdict"),
    "representation": ("cka", "mutual_knn", "retrieval", "rsa"),
    "predictivity": ("linear_predictivity",),
    "layer_maps": ("layer_map",),
    "store": ("Entry", "Job", "Store"),
    "sweeps": ("Swept", "jobs_of", "sweep"),
    "judging": ("agreement", "examine", "results"),
    "examiners": ("DemoExaminer", "ZeroShotJudge"),
    "vlm_judge": ("VLMJudge",),
    "openai_judge": ("OpenAIJudge",),
    "intervals": ("bootstrap", "wilson"),
    "tables": ("rates",),
    "words": ("BASELINE_WORDS",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from .augment import Noise, Rotate, Scale, Shift
    from .canvas import MACO, Fourier, MultiResolution, Native, Pixels
    from .card_making import make_cards
    from .cards import Card, Material
    from .demo import demo_sae
    from .detached import RemoteJob, collect, submit
    from .directions import Direction, concept, contrast, cosine, from_images, from_tensor, probe
    from .examiners import DemoExaminer, ZeroShotJudge
    from .families import Family
    from .feature_judging import judge_features
    from .features import Feature, feature, feature_from_tensors
    from .hosted import Hosted, remote_models
    from .intervals import bootstrap, wilson
    from .judges import DemoJudge, Verdict
    from .judging import agreement, examine, results
    from .latents import Latent
    from .layer_maps import layer_map
    from .objectives import Attention, Away, Grey, Max, Mean, NaturalNoise, Objective, Pictures, TotalVariation
    from .openai_judge import OpenAIJudge
    from .predictivity import linear_predictivity
    from .prototype import Prototype, Prototypes
    from .readouts import Logits, top_logits
    from .representation import cka, mutual_knn, retrieval, rsa
    from .sae_reading import Active, Candidate, Strangeness, candidates, features_of, strangeness
    from .sites import Site
    from .store import Entry, Job, Store
    from .sweeps import Swept, jobs_of, sweep
    from .synthesis import Settings, synthesize
    from .tables import rates
    from .trace import Step, check, read_pictures, read_text
    from .vlm import VLM, load
    from .vlm_judge import VLMJudge
    from .words import BASELINE_WORDS


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nnsight_dream' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
