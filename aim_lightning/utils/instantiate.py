"""Objects from configuration: a mapping of class_path and init_args."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from aim_lightning.utils.errors import UserError


def build_object(section: Mapping[str, Any], base: type, key: str) -> Any:
    """The object that a section names, its arguments checked against the class's signature.

    Args:
        section: class_path, and init_args where there are any.
        base: what the class must be derived from.
        key: of the section, for errors.

    Raises:
        UserError: no such class, or arguments that it does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, key, required=True)
    try:
        return parser.instantiate(parser.parse_object({key: dict(section)}))[key]
    except ArgumentError as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from None
