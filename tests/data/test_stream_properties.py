"""The stream over random sizes, shard counts, worlds, workers and cut points, read as ranks and workers read it."""

import math
from collections import defaultdict
from functools import cache, partial

import pytest
from helpers import write_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.tokens.datamodule import TokenMicroBatches
from aim_lightning.data.tokens.format.manifest import file_url
from aim_lightning.data.tokens.read.reader import ShardReader


@pytest.fixture(scope="module")
def reader_of(tmp_path_factory):
    """A reader of shards of given numbers of rows."""

    @cache
    def reader(*shards):
        root = tmp_path_factory.mktemp("shards")
        manifest = write_tokens(root / "train", list(shards), views=3)
        return ShardReader(manifest, partial(file_url, str(root), "train"))

    return reader


def read(reader, plan, *, window, seed, epoch, start, workers):
    """{global batch: [(row, codes, label)]} as all workers of all ranks give them, with their place checked."""
    found = defaultdict(list)
    for rank in range(plan.world_size):
        stream = TokenMicroBatches(reader, window, plan, rank, seed)
        stream.epoch = epoch
        for worker in range(workers):
            pieces = list(plan.positions(stream.rows, start, rank, worker, workers))
            for piece, batch in zip(pieces, stream.read(iter(pieces)), strict=True):
                rows = zip(batch["index"].tolist(), batch["codes"].tolist(), batch["labels"].tolist(), strict=True)
                found[piece.start // plan.global_batch_size] += zip(range(piece.start, piece.stop), rows, strict=True)
    return {batch: [row for _, row in sorted(rows)] for batch, rows in found.items()}


RANKS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))  # world, accumulation steps, workers


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=12),  # often fewer than workers
    window=st.integers(1, 90),
    each=st.integers(1, 6),
    first=RANKS,
    second=RANKS,
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    cut=st.integers(0, 60),
)
def test_any_ranks_and_workers_continue_at_any_cut(reader_of, shards, window, each, first, second, seed, epoch, cut):
    """Begun by one set of ranks and workers, continued by another: together every row once, each in its batch."""
    reader, rows = reader_of(*shards), sum(shards)
    unit = math.lcm(first[0] * first[1], second[0] * second[1])  # divides over both
    batch = min(each * unit, rows // unit * unit)
    if not batch:  # fewer rows than ranks
        batch, first, second = 1, (1, 1, first[2]), (1, 1, second[2])
    plans, workers = [BatchPlan(batch, *ranks[:2]) for ranks in (first, second)], (first[2], second[2])
    options = {"window": window, "seed": seed, "epoch": epoch}
    complete = read(reader, plans[0], start=0, workers=workers[0], **options)
    assert sorted(complete) == list(range(rows // batch))
    seen = [row for number in sorted(complete) for row, _, _ in complete[number]]
    assert len(seen) == len(set(seen)) == rows // batch * batch
    cut %= len(complete) + 1
    rest = read(reader, plans[1], start=cut, workers=workers[1], **options)
    assert rest == {number: content for number, content in complete.items() if number >= cut}


def test_the_tail_is_other_rows_every_epoch(reader_of):
    reader, rows, plan, tails = reader_of(13, 9, 17, 5), 44, BatchPlan(12, 1, 1), []
    for epoch in range(4):
        complete = read(reader, plan, window=20, seed=0, epoch=epoch, start=0, workers=1)
        tails.append(frozenset(range(rows)) - {row for batch in complete.values() for row, _, _ in batch})
    assert all(len(tail) == rows % 12 for tail in tails) and len(set(tails)) > 1


def test_only_the_window_of_the_position_is_read(reader_of):
    reader, plan, read_shards = reader_of(*[7] * 12), BatchPlan(7, 1, 1), []

    class Counting(ShardReader):
        def read(self, shard, choose_view):
            read_shards.append(shard)
            return super().read(shard, choose_view)

    counting = Counting(reader.manifest, reader.url)
    for start in range(12):
        read_shards.clear()
        stream = TokenMicroBatches(counting, 14, plan, 0, 0)
        next(stream.read(plan.positions(stream.rows, start, 0)))
        assert len(read_shards) == 2, start  # a window holds two shards of seven rows
