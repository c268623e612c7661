"""``python -m aim_lightning`` and the console script."""

import atexit
import gc
import sys

from aim_lightning.cluster import signals

if sys.argv[1:2] == ["fit"]:
    signals.install()  # before anything slow is imported

from aim_lightning.cli.main import main

# Otherwise the collections at the interpreter's end look at all that was imported once more, for seconds. Registered
# before torch and multiprocessing are imported, it runs after what they do at the end.
atexit.register(gc.freeze)

if __name__ == "__main__":
    sys.exit(main())
