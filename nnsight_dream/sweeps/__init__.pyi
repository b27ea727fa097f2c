"""Where each public name of this package lies."""

from .aims import jobs_of_aims as jobs_of_aims
from .entries import Entry as Entry
from .entries import Failure as Failure
from .jobs import Job as Job
from .jobs import jobs_of as jobs_of
from .ray import Cluster as Cluster
from .store import Store as Store
from .sweep import Plan as Plan
from .sweep import Swept as Swept
from .sweep import plan as plan
