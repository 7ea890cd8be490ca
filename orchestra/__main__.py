"""`python -m orchestra`, for `torchrun -m orchestra run 40d`."""

import sys

from orchestra.cli import main

sys.exit(main())
