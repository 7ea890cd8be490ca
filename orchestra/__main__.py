"""`python -m orchestra`, for `torchrun -m orchestra run 40d`."""

import os
import sys
import traceback

from models.processes import count
from orchestra.cli import main

try:
    code = main()
except Exception:  # what nobody foresaw; with other processes there must be an end all the same
    if count() == 1:
        raise
    traceback.print_exc()
    code = 1
if code and count() > 1:
    # process groups wait for ever in their destructors where a process at the other end is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
