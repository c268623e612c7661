"""Short hash of plain values."""

import hashlib
import json
from typing import Any


def short_key(values: Any) -> str:
    """Return eight hex digits of a hash of plain values, such as for the name of a directory."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
