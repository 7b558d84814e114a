"""``python -m distillhash.cli`` is ``distillhash``."""

import sys

from distillhash.cli import main

sys.exit(main())
