"""Where each public name of this package lies."""

from .estimate import Estimate as Estimate
from .families import known_families as known_families
from .family import Family as Family
from .hosted import Hosted as Hosted
from .hosted import remote_models as remote_models
from .reading import mean_patches as mean_patches
from .reading import read_pictures as read_pictures
from .reading import read_text as read_text
from .sites import Site as Site
from .vlm import VLM as VLM
