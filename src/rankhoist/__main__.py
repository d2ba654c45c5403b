"""`python -m rankhoist` is the command `rankhoist`."""

import sys

from rankhoist.cli import main

if __name__ == "__main__":
    sys.exit(main())
