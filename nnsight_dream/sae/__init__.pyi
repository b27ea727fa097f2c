"""Where each public name of this package lies."""

from .activations import Active as Active
from .activations import Candidate as Candidate
from .activations import Strangeness as Strangeness
from .activations import candidates as candidates
from .activations import features_of as features_of
from .activations import strangeness as strangeness
from .feature import Feature as Feature
from .make import feature_from_tensors as feature_from_tensors
from .readouts import Logits as Logits
from .readouts import nearest_rows as nearest_rows
from .readouts import top_logits as top_logits
from .releases import demo_sae as demo_sae
from .releases import load_sae as load_sae
from .responses import Responses as Responses
from .responses import Selective as Selective
from .responses import selective as selective
from .responses import word_tokens as word_tokens
