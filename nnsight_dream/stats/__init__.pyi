"""Where each public name of this package lies."""

from .folds import duplicate_groups as duplicate_groups
from .folds import make_folds as make_folds
from .intervals import bootstrap as bootstrap
from .intervals import wilson as wilson
from .ridge import Predictivity as Predictivity
from .ridge import linear_predictivity as linear_predictivity
from .scores import Null as Null
from .scores import Score as Score
from .similarity import cka as cka
from .similarity import mutual_knn as mutual_knn
from .similarity import retrieval as retrieval
from .similarity import rsa as rsa
