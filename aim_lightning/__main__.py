"""``python -m aim_lightning`` and the console script."""

import atexit
import gc
import sys

from aim_lightning.cluster import signals
from aim_lightning.utils.errors import killed_worker
from aim_lightning.utils.logging import protect_output
from aim_lightning.utils.process import choose_wait_policy

if sys.argv[1:2] == ["fit"]:
    signals.install()  # before anything slow is imported
from aim_lightning.cli.main import main  # imports no torch


def report_unraisable(fault, default=sys.unraisablehook) -> None:
    """Report an exception of a destructor or at exit, except those that the command has reported already."""
    # Torch raises from its handler of SIGCHLD, which may run while a loader of the previous epoch is deleted.
    # W&B raises at exit if its service was killed.
    from_wandb = str(getattr(fault.object, "__module__", "")).startswith("wandb.")
    if killed_worker(fault.exc_value) is None and not from_wandb:
        default(fault)


sys.unraisablehook = report_unraisable
protect_output()
choose_wait_policy()
# Without this, the garbage collections at exit traverse all imported objects, for seconds. Registered before torch and
# multiprocessing are imported, it runs after their own exit handlers. From Python 3.13 on, Triton's bindings would
# report leaked objects; 3.12 is untested and therefore excluded.
if sys.version_info < (3, 12):
    atexit.register(gc.freeze)

if __name__ == "__main__":
    sys.exit(main())
