"""Where each public name of this package lies."""

from .centres import Grey as Grey
from .centres import NaturalNoise as NaturalNoise
from .centres import Pictures as Pictures
from .direction import Direction as Direction
from .direction import cosine as cosine
from .pattern import Pattern as Pattern
from .sources import from_images as from_images
from .sources import from_tensor as from_tensor
from .sources import probe as probe
from .text import concept as concept
from .text import contrast as contrast
