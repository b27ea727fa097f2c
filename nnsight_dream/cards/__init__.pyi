"""Where each public name of this package lies."""

from .card import Card as Card
from .card import Material as Material
from .card import Shot as Shot
from .card import cards_of as cards_of
from .gallery import page as page
from .judged import Judged as Judged
from .judged import judge_features as judge_features
from .make import Made as Made
from .make import make_cards as make_cards
