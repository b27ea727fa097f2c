"""Where each public name of this package lies."""

from .pages import page as page
from .raters import raters_page as raters_page
from .raters import read_ratings as read_ratings
from .tables import interval as interval
from .tables import mixed as mixed
from .tables import rates as rates
from .tables import seed_agreement as seed_agreement
from .tables import to_markdown as to_markdown
from .tables import write_csv as write_csv
