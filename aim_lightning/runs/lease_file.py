"""What lies in the file of a lease."""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple


class LeaseState(NamedTuple):
    """What lies in the file of a lease, and when its holder last gave a sign of life (seconds since 1970)."""

    text: str
    sign: float

    @property
    def holder(self) -> dict:
        """{} for a file that another process has made and not filled yet."""
        try:
            holder = json.loads(self.text)
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    @property
    def age(self) -> float:
        """Seconds since the last sign of life."""
        return time.time() - self.sign


def read_lease(path: Path) -> LeaseState | None:
    """None when there is none. Opened first: a network file system then asks its server for the time stamp."""
    try:
        with path.open() as file:
            return LeaseState(file.read(), os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return None
