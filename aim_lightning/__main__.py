"""``python -m aim_lightning``."""

import sys

from aim_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
