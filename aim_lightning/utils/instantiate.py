"""Objects from the configuration, given as class_path and init_args."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from aim_lightning.utils.errors import UserError


def build_object(section: Mapping[str, Any], base: type, key: str) -> Any:
    """Build the object of a section and check its arguments against the signature.

    Args:
        section: class_path and optional init_args.
        base: required base class.
        key: name of the section, for errors.

    Raises:
        UserError: an unknown class, or arguments that it does not accept.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, key, required=True, fail_untyped=False)
    try:
        return parser.instantiate(parser.parse_object({key: dict(section)}))[key]
    except ArgumentError as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from None
