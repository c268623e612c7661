"""Corrupt records: stop and name, or skip with every other row in its place."""

import tarfile

import numpy as np
import pytest
from data.test_tokens import flat, module
from helpers import assert_user_error, flip_bit, write_tokens

from aim_lightning.data.tokens.format import record_format

SKIP = {"on_corrupt": "skip"}


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Shards of several records of 10 rows."""
    monkeypatch.setattr(record_format, "ROWS_PER_RECORD", 10)
    for split, rows in (("train", [35, 24, 17]), ("val", [22])):
        write_tokens(tmp_path / split, rows, views=2, seed=len(split))
    return tmp_path


def flip(path, record, byte=200):
    """Change one byte in the middle of a record's codes."""
    # It stays within the codebook: only the checksum differs.
    flip_bit(path, codes_of(path, record).offset_data + byte)


def codes_of(path, record):
    """Return the tar's entry for the codes of a record."""
    with tarfile.open(path) as tar:
        return next(member for member in tar if member.name.endswith(f"-{record:04d}.codes.npy"))


def rows_of(directory, **options):
    batches = list(module(directory, fetch=SKIP, window=1000, **options).train_dataloader())
    rows = flat(b["index"].tolist() for b in batches)
    return rows, sum(int(b["replaced"]) for b in batches), flat(b["codes"].tolist() for b in batches)


def test_by_default_training_stops_and_names_the_record(directory):
    flip(directory / "train" / "tokens-000001.tar", 1)
    match = "tokens-000001.tar, record 0001: its sha256 does not match.*data.on_corrupt skip"
    assert_user_error(match, lambda: list(module(directory).train_dataloader()))


def test_a_damaged_type_of_an_array_counts_as_damage(directory):
    path = directory / "train" / "tokens-000001.tar"
    flip_bit(path, codes_of(path, 1).offset_data + 22)  # of "<u2"
    assert_user_error("tokens-000001.tar, record 0001", lambda: list(module(directory).train_dataloader()))
    assert rows_of(directory, batch=4)[1] > 0


def test_skipped_rows_are_replaced_and_the_others_keep_their_place(directory, capsys):
    complete, none, codes_before = rows_of(directory, batch=4)
    assert none == 0
    flip(directory / "train" / "tokens-000001.tar", 1)  # dataset rows 45 to 54
    skipped, replaced, codes = rows_of(directory, batch=4)
    lost = {row for row in complete if 45 <= row < 55}
    assert replaced == len(lost) > 0 and not lost & set(skipped)
    same = [a == b for a, b in zip(complete, skipped, strict=True)]
    assert same.count(False) == len(lost)
    assert all(codes[i] == codes_before[i] for i in range(len(same)) if same[i])
    first = {row: c for row, c, kept in zip(skipped, codes, same, strict=True) if kept}
    assert all(codes[i] == first[skipped[i]] for i in range(len(same)) if not same[i] and skipped[i] in first)
    err = capsys.readouterr().err
    assert err.count("skipped a corrupt record") == 1 and "tokens-000001.tar, record 0001" in err


def test_skipping_stays_a_function_of_seed_and_epoch(directory):
    flip(directory / "train" / "tokens-000000.tar", 0)
    expected = rows_of(directory, batch=4)
    assert rows_of(directory, batch=4) == expected
    assert rows_of(directory, batch=4, workers=2) == expected
    for start in (3, 11):
        assert rows_of(directory, batch=4, start=start)[0] == expected[0][4 * start :]
    halves = [rows_of(directory, batch=4, world=2, rank=rank) for rank in range(2)]
    assert sum(half[1] for half in halves) == expected[1]
    ranks = [[half[0][i : i + 2] for i in range(0, len(half[0]), 2)] for half in halves]
    assert flat(a + b for a, b in zip(*ranks, strict=True)) == expected[0]
    assert rows_of(directory, batch=4, seed=5)[0] != expected[0]


def test_the_rest_of_a_truncated_shard_is_skipped(directory):
    path = directory / "train" / "tokens-000000.tar"
    path.write_bytes(path.read_bytes()[: codes_of(path, 2).offset_data + 8])
    rows, replaced, _ = rows_of(directory, batch=4)
    assert replaced == 15 and not set(range(20, 35)) & set(rows)


def test_a_window_without_a_readable_record_stops(directory):
    for path in (directory / "train").glob("*.tar"):
        path.write_bytes(b"x" * 3000)
    assert_user_error("no record of a whole shuffle window", rows_of, directory)


def test_validation_stops_all_the_same(directory):
    flip(directory / "val" / "tokens-000000.tar", 1)
    assert_user_error("record 0001", lambda: list(module(directory, fetch=SKIP).val_dataloader()))


def test_every_changed_byte_of_a_record_is_noticed(directory, tmp_path):
    path, rng = directory / "train" / "tokens-000002.tar", np.random.default_rng(0)
    with tarfile.open(path) as tar:
        spans = [(m.offset_data, m.size) for m in tar]
    clean = rows_of(directory, batch=4)
    for _ in range(25):
        start, size = spans[rng.integers(len(spans))]
        change = start + rng.integers(size), rng.integers(8)
        flip_bit(path, *change)
        assert_user_error(r"tokens-000002.tar, record 000[01]", lambda: list(module(directory).train_dataloader()))
        flip_bit(path, *change)  # back
    assert rows_of(directory, batch=4) == clean


def test_the_limit_stops_at_the_same_step_after_a_resume(directory, tmp_path):
    """The count of an epoch travels in the checkpoint."""
    from aim_lightning.callbacks.training.resume_state import CorruptRecords

    flip(directory / "train" / "tokens-000001.tar", 1)

    def stop(callback, start, until=None):
        data = module(directory, batch=4, window=1000, start=start, fetch={**SKIP, "skip_limit": 3})
        trainer = data.trainer
        trainer.datamodule, trainer.log_every_n_steps = data, 1
        trainer.strategy.reduce = lambda value, reduce_op: value
        callback.log = lambda *_: None
        for batch in data.train_dataloader():
            if data.cursor.batch == until:
                break
            data.advance()
            callback.on_train_batch_end(trainer, None, None, batch, 0)
        return trainer

    counts = {}
    for name in ("complete", "cut"):
        callback, start = CorruptRecords(), 0
        if name == "cut":
            trainer = stop(callback, 0, until=6)
            callback.on_save_checkpoint(trainer, None, checkpoint := {})
            callback, start = CorruptRecords(), 6
            callback.on_load_checkpoint(trainer, None, checkpoint)
        assert_user_error(r"more than data.skip_limit 3", stop, callback, start)
        counts[name] = (callback.total, callback.in_epoch)
    assert counts["complete"] == counts["cut"] and counts["complete"][0] == 4
