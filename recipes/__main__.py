"""`python -m recipes`, for `accelerate launch -m recipes run 40d`."""

import sys

from recipes.cli import main

sys.exit(main())
