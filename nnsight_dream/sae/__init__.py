"""Sparse autoencoders: features, files, releases, what fires."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "feature": ["Feature"],
        "make": ["feature_from_tensors"],
        "releases": ["demo_sae", "load_sae"],
        "activations": ["Active", "Candidate", "Strangeness", "candidates", "features_of", "strangeness"],
        "responses": ["Responses", "Selective", "selective", "word_tokens"],
        "readouts": ["Logits", "nearest_rows", "top_logits"],
    },
)
