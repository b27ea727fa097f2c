"""Where each public name of this package lies."""

from .layout import flat as flat
from .layout import nearest as nearest
from .layout import snapped as snapped
from .likeness import Likeness as Likeness
from .likeness import likeness as likeness
from .make import atlas_of_sae as atlas_of_sae
from .make import make_atlas as make_atlas
from .page import Atlas as Atlas
from .page import Tile as Tile
from .page import write as write
from .tiles import live_features as live_features
from .tiles import tiles_of as tiles_of
