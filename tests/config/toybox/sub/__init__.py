"""Classes of another module under further names."""

import toybox.shapes as s

from ..shapes import Base  # noqa: F401

X = s.Free
