"""A package whose classes the configurations of test_check.py name; pytest puts its parent on the path."""

from .shapes import *  # noqa: F403
from .shapes import Model as Renamed  # noqa: F401
