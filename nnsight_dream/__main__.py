"""`python -m nnsight_dream` is `nnsight-dream`."""

import sys

from .cli import main

sys.exit(main())
