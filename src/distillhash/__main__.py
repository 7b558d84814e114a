"""``python -m distillhash`` is ``distillhash``."""

import sys

from distillhash.cli import main

sys.exit(main())
