"""`python -m keylock` is the `keylock` command."""

import sys

from keylock.cli import main

if __name__ == "__main__":
    sys.exit(main())
