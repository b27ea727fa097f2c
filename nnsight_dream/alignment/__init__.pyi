"""Where each public name of this package lies."""

from .cosines import Similarities as Similarities
from .cosines import curves as curves
from .cosines import diagnosis as diagnosis
from .cosines import separation as separation
from .cosines import similarities as similarities
from .cosines import white_noise as white_noise
from .encoders import Encoder as Encoder
from .encoders import language_model as language_model
from .encoders import vision_model as vision_model
from .pairs import Pair as Pair
from .pairs import bundled as bundled
from .pairs import from_coco as from_coco
from .pairs import from_folder as from_folder
from .pairs import from_hub as from_hub
from .pairs import from_table as from_table
