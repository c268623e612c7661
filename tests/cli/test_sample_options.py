"""Choosing classes by name."""

import pytest

from aim_lightning.cli.sample import choose_classes
from aim_lightning.utils.errors import UserError

NAMES = ["t-shirt", "ankle boot", "bag"]


def test_names_and_numbers():
    assert choose_classes(None, NAMES) == [0, 1, 2]
    assert choose_classes("Bag, ankle boot,0", NAMES) == [2, 1, 0]


@pytest.mark.parametrize("text", ["shoe", "3", "-1", "bag,,", ""])
def test_unknown_classes_name_the_known_ones(text):
    with pytest.raises(UserError, match="classes are t-shirt, ankle boot, bag"):
        choose_classes(text, NAMES)
