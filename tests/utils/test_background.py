"""Threads beside the main one: results, errors, order, and an end."""

import threading
import time

import pytest

from aim_lightning.utils.threads import ahead, in_background


def test_a_result_and_an_error_come_out_where_they_are_asked_for():
    assert in_background(lambda: 3).result() == 3
    failed = in_background(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_items_come_in_order_and_before_they_are_asked_for():
    fetched = []
    items = ahead((fetched.append(i) or i for i in range(9)), 2)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(fetched) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert fetched == [0, 1, 2], "two ahead, no more"
    assert list(items) == list(range(1, 9))


def test_an_error_comes_after_the_items_before_it_and_no_thread_is_left():
    def broken():
        yield from (1, 2)
        raise ValueError("three")

    before, seen = threading.active_count(), []
    with pytest.raises(ValueError, match="three"):
        seen.extend(ahead(broken(), 2))
    assert seen == [1, 2]
    items = ahead(iter(range(100)), 2)
    next(items)
    items.close()
    assert threading.active_count() == before
