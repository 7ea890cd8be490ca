"""`python -m orchestra`, for `torchrun -m orchestra run 40d`."""

import os
import sys

from models.processes import count
from orchestra.cli import main

code = main()
if code and count() > 1:
    # process groups wait for ever in their destructors where a process at the other end is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
