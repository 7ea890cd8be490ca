"""`python -m orchestra`, for `accelerate launch -m orchestra run 40d`."""

import sys

from orchestra.cli import main

sys.exit(main())
