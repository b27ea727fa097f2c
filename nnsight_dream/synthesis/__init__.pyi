"""Where each public name of this package lies."""

from .compare import Comparison as Comparison
from .compare import compare as compare
from .detached import RemoteJob as RemoteJob
from .detached import collect as collect
from .detached import submit as submit
from .film import Film as Film
from .film import film_of_layers as film_of_layers
from .prototype import Prototype as Prototype
from .prototypes import Prototypes as Prototypes
from .reach import Reach as Reach
from .reach import reach as reach
from .request import Away as Away
from .series import interpolate as interpolate
from .series import strengths as strengths
from .series import sums as sums
from .settings import Settings as Settings
