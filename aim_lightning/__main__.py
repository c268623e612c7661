"""``python -m aim_lightning`` and the console script."""

import sys

from aim_lightning.cluster import signals

if sys.argv[1:2] == ["fit"]:
    signals.install()  # before anything slow is imported

from aim_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
