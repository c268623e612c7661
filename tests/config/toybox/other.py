"""A class derived from one of another module."""

from . import shapes


class Far(shapes.Base):
    pass
