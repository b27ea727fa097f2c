"""The bundled model, judge, autoencoder, pictures and list of concepts.

from nnsight_dream import demo
demo.concepts("animals"), demo.pictures()
"""

from __future__ import annotations

from .bundle import DemoConcept, Picture, concepts, folder, pictures, sae_folder
from .gemma import gemma_folder, language_folder

__all__ = ["DemoConcept", "Picture", "concepts", "folder", "gemma_folder", "language_folder", "pictures", "sae_folder"]
