"""The stream over random sizes, shard counts, worlds, workers and cut points, read as ranks and workers read it."""

import pytest
from helpers import write_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.tokens.datamodule import ShardUrl, TokenMicroBatches
from aim_lightning.data.tokens.manifest import TokenManifest
from aim_lightning.data.tokens.reader import ShardReader

SHARD_SETS = ([3], [41], [1, 1, 1, 30], [13, 9, 17, 5], [7] * 12, [2, 60, 2])


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """One reader a set of shards: rows in one shard up to many small ones."""
    made = []
    for number, shards in enumerate(SHARD_SETS):
        root = tmp_path_factory.mktemp(f"shards{number}")
        write_tokens(root / "train", shards, views=3, seed=number)
        made.append(ShardReader(TokenManifest.load(root / "train"), ShardUrl(str(root), "train")))
    return made


def read(reader, plan, *, window, seed, epoch, start, workers):
    """{global batch: [(row, codes, label)]} as all workers of all ranks give them, with their place checked."""
    found: dict[int, list] = {}
    for rank in range(plan.world_size):
        stream = TokenMicroBatches(reader, window, plan, rank, seed)
        stream.epoch = epoch
        for worker in range(workers):
            pieces = list(plan.positions(stream.rows, start, rank, worker, workers))
            for piece, batch in zip(pieces, stream.read(iter(pieces)), strict=True):
                rows = zip(batch["index"].tolist(), batch["codes"].tolist(), batch["labels"].tolist(), strict=True)
                found.setdefault(piece.start // plan.global_batch_size, []).extend(
                    zip(range(piece.start, piece.stop), rows, strict=True)
                )
    return {batch: [row for _, row in sorted(rows)] for batch, rows in found.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, len(SHARD_SETS) - 1),
    window=st.integers(1, 70),
    each=st.integers(1, 4),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    workers=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    cut=st.integers(0, 60),
)
def test_any_world_and_workers_continue_at_any_cut(readers, which, window, each, worlds, workers, seed, epoch, cut):
    """Begun by one set of ranks and workers, continued by another: together every row once, each in its batch."""
    reader, rows = readers[which], sum(SHARD_SETS[which])
    batch = min(each * 12, rows // 12 * 12) or 1  # divides by every world
    worlds = worlds if batch > 1 else (1, 1)
    plans = [BatchPlan(batch, world, 1) for world in worlds]
    options = {"window": window, "seed": seed, "epoch": epoch}
    whole = read(reader, plans[0], start=0, workers=workers[0], **options)
    assert sorted(whole) == list(range(rows // batch))
    seen = [row for number in sorted(whole) for row, _, _ in whole[number]]
    assert len(seen) == len(set(seen)) == rows // batch * batch
    cut %= len(whole) + 1
    rest = read(reader, plans[1], start=cut, workers=workers[1], **options)
    assert rest == {number: content for number, content in whole.items() if number >= cut}


def test_the_tail_is_other_rows_every_epoch(readers):
    reader, rows, plan = readers[3], sum(SHARD_SETS[3]), BatchPlan(12, 1, 1)
    tails = []
    for epoch in range(4):
        whole = read(reader, plan, window=20, seed=0, epoch=epoch, start=0, workers=1)
        tails.append(frozenset(range(rows)) - {row for batch in whole.values() for row, _, _ in batch})
    assert all(len(tail) == rows % 12 for tail in tails) and len(set(tails)) > 1


def test_only_the_window_of_the_position_is_read(readers):
    reader, plan, read_shards = readers[4], BatchPlan(7, 1, 1), []

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
