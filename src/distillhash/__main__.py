"""``python -m distillhash`` is ``distillhash``."""

import sys

from distillhash.cli import main

if __name__ == "__main__":
    sys.exit(main())
