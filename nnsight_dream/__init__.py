"""nnsight-dream: pictures of directions in vision-language models.

A direction (a concept from text, a probe, any vector) or a sparse autoencoder's feature at a site of a model is climbed
through traced patch activations to a prototype image: what it looks like. Public names in the order of the work;
nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

_HOMES = {
    "models.vlm": ("VLM",),
    "models.load": ("load",),
    "models.sites": ("Site",),
    "models.family": ("Family",),
    "directions.direction": (
        "Direction",
        "cosine",
    ),
    "directions.text": (
        "concept",
        "contrast",
    ),
    "directions.sources": (
        "from_images",
        "from_tensor",
        "probe",
    ),
    "directions.steering": ("save_control_vectors",),
    "sae.feature": ("Feature",),
    "sae.make": (
        "feature",
        "feature_from_tensors",
    ),
    "engine.latent": ("Latent",),
    "engine.pooling": (
        "Attention",
        "Max",
        "Mean",
    ),
    "synthesis.request": ("Away",),
    "directions.centres": (
        "Grey",
        "NaturalNoise",
        "Pictures",
    ),
    "engine.objective": ("Objective",),
    "engine.terms": ("TotalVariation",),
    "engine.canvas": (
        "MultiResolution",
        "Native",
        "Pixels",
    ),
    "engine.spectrum": ("Fourier", "MACO"),
    "engine.augment": (
        "Noise",
        "Rotate",
        "Scale",
        "Shift",
    ),
    "synthesis.settings": ("Settings",),
    "synthesis.synthesize": ("synthesize",),
    "synthesis.detached": (
        "RemoteJob",
        "collect",
        "submit",
    ),
    "models.hosted": (
        "Hosted",
        "remote_models",
    ),
    "synthesis.prototype": ("Prototype",),
    "synthesis.prototypes": ("Prototypes",),
    "sae.activations": (
        "Active",
        "Candidate",
        "Strangeness",
        "candidates",
        "features_of",
        "strangeness",
    ),
    "sae.readouts": (
        "Logits",
        "top_logits",
    ),
    "cards.card": (
        "Card",
        "Material",
    ),
    "cards.make": ("make_cards",),
    "cards.judged": ("judge_features",),
    "sae.releases": ("demo_sae",),
    "engine.optimise": ("Step",),
    "models.check": ("check",),
    "models.reading": (
        "read_pictures",
        "read_text",
    ),
    "judges.named": (
        "DemoJudge",
        "Verdict",
    ),
    "stats.similarity": (
        "cka",
        "mutual_knn",
        "retrieval",
        "rsa",
    ),
    "stats.ridge": ("linear_predictivity",),
    "stats.layer_map": ("layer_map",),
    "sweeps.entries": ("Entry",),
    "sweeps.jobs": (
        "Job",
        "jobs_of",
    ),
    "sweeps.store": ("Store",),
    "sweeps.sweep": (
        "Swept",
        "sweep",
    ),
    "judges.tally": (
        "agreement",
        "results",
    ),
    "judges.examine": ("examine",),
    "judges.local": (
        "DemoExaminer",
        "ZeroShotJudge",
    ),
    "judges.vlm": ("VLMJudge",),
    "judges.openai": ("OpenAIJudge",),
    "stats.intervals": (
        "bootstrap",
        "wilson",
    ),
    "report.tables": ("rates",),
    "directions.baseline_words": ("BASELINE_WORDS",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from .cards.card import Card, Material
    from .cards.judged import judge_features
    from .cards.make import make_cards
    from .directions.baseline_words import BASELINE_WORDS
    from .directions.centres import Grey, NaturalNoise, Pictures
    from .directions.direction import Direction, cosine
    from .directions.sources import from_images, from_tensor, probe
    from .directions.steering import save_control_vectors
    from .directions.text import concept, contrast
    from .engine.augment import Noise, Rotate, Scale, Shift
    from .engine.canvas import MultiResolution, Native, Pixels
    from .engine.latent import Latent
    from .engine.objective import Objective
    from .engine.optimise import Step
    from .engine.pooling import Attention, Max, Mean
    from .engine.spectrum import MACO, Fourier
    from .engine.terms import TotalVariation
    from .judges.examine import examine
    from .judges.local import DemoExaminer, ZeroShotJudge
    from .judges.named import DemoJudge, Verdict
    from .judges.openai import OpenAIJudge
    from .judges.tally import agreement, results
    from .judges.vlm import VLMJudge
    from .models.check import check
    from .models.family import Family
    from .models.hosted import Hosted, remote_models
    from .models.load import load
    from .models.reading import read_pictures, read_text
    from .models.sites import Site
    from .models.vlm import VLM
    from .report.tables import rates
    from .sae.activations import Active, Candidate, Strangeness, candidates, features_of, strangeness
    from .sae.feature import Feature
    from .sae.make import feature, feature_from_tensors
    from .sae.readouts import Logits, top_logits
    from .sae.releases import demo_sae
    from .stats.intervals import bootstrap, wilson
    from .stats.layer_map import layer_map
    from .stats.ridge import linear_predictivity
    from .stats.similarity import cka, mutual_knn, retrieval, rsa
    from .sweeps.entries import Entry
    from .sweeps.jobs import Job, jobs_of
    from .sweeps.store import Store
    from .sweeps.sweep import Swept, sweep
    from .synthesis.detached import RemoteJob, collect, submit
    from .synthesis.prototype import Prototype
    from .synthesis.prototypes import Prototypes
    from .synthesis.request import Away
    from .synthesis.settings import Settings
    from .synthesis.synthesize import synthesize


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    from .moved import MOVED

    if name not in MOVED:
        raise AttributeError(f"module 'nnsight_dream' has no attribute {name!r}")
    import warnings

    new = f"{__name__}.{MOVED[name]}"
    warnings.warn(
        f"{__name__}.{name} is {new} now; the old name goes with the next release", FutureWarning, stacklevel=2
    )
    return importlib.import_module(new)


def __dir__() -> list[str]:
    return sorted(__all__)
