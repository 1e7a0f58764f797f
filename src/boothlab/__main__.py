"""`python -m boothlab` is `boothlab`."""

import sys

from boothlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
