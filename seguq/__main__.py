"""``python -m seguq``: the command line."""

import sys

from seguq.cli import main

if __name__ == "__main__":
    sys.exit(main())
