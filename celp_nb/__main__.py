"""`python -m celp_nb` is the command `celp`: torchrun and accelerate start it so."""

import sys

from celp_nb.app.cli import main

sys.exit(main())
