"""Signs of life of this process: long loops call `beat`, the watchdog of `cluster` looks at the last one."""

import time

_last, _phase = time.monotonic(), "start-up"


def beat(phase: str) -> None:
    """Something was done; `phase` says what comes next."""
    global _last, _phase
    _last, _phase = time.monotonic(), phase


def last() -> tuple[float, str]:
    """Seconds since the last sign of life, and the phase that began with it."""
    return time.monotonic() - _last, _phase
