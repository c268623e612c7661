"""A module that needs a missing package."""

import no_such_package  # noqa: F401
