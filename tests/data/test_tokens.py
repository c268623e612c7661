"""Token shards: order, views, faults."""

import json
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data.builders import members_of, npy, tar_of
from helpers import TINY, assert_user_error, write_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aim_lightning.data.tokens.datamodule import TokenDataModule
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.record_format import stored_records
from aim_lightning.utils.random import hash_uniform


def flat(lists):
    return list(chain.from_iterable(lists))


def module(
    directory, *, batch=8, rank=0, world=1, limit=None, workers=0, window=20, seed=0, epoch=0, start=0, fetch=None
):
    data = TokenDataModule(
        str(directory),
        batch,
        max_device_batch_size=limit,
        num_workers=workers,
        window_rows=window,
        seed=seed,
        val_batch_size=7,
        **(fetch or {}),
    )
    data.setup("fit")
    data.plan_for(world)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    data.cursor.epoch, data.cursor.batch = epoch, start
    return data


def global_batches(directory, *, world=1, limit=None, batch=8, **options):
    """Rows of each global batch, in order, as all ranks together see them."""
    plan_streams = [module(directory, batch=batch, rank=r, world=world, limit=limit, **options) for r in range(world)]
    accumulate = plan_streams[0].plan.accumulate
    per_rank = [[b["index"].tolist() for b in data.train_dataloader()] for data in plan_streams]
    micros = [flat(parts) for parts in zip(*per_rank, strict=True)]
    return [flat(micros[i : i + accumulate]) for i in range(0, len(micros), accumulate)]


def stored(directory):
    """Codes (n, views, tokens) and labels (n,) of all rows of a token directory."""
    manifest, parts = TokenManifest.load(directory), []
    for shard in manifest.shards:
        records = list(stored_records((directory / shard.name).read_bytes(), shard.rows, manifest, shard.name))
        assert not any(record.fault for record in records)
        parts += [(record.codes, record.labels) for record in records]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@pytest.fixture
def directory(tmp_path):
    for split, rows in (("train", [13, 9, 17, 5]), ("val", [11, 4])):
        write_tokens(tmp_path / split, rows, views=3, seed=len(split))
    return tmp_path


def test_an_epoch_is_the_same_for_any_world_accumulation_and_workers(directory):
    expected = global_batches(directory)
    assert global_batches(directory, world=2) == expected
    assert global_batches(directory, world=4, limit=1) == expected
    assert global_batches(directory, workers=2) == expected
    assert global_batches(directory, world=2, limit=2, workers=3) == expected
    rows = flat(expected)
    assert len(rows) == len(set(rows)) == 40  # 44 rows: the tail that fills no batch is left out


def test_order_changes_with_seed_and_epoch_and_restarts_anywhere(directory):
    expected = global_batches(directory, epoch=1)
    assert global_batches(directory, epoch=0) != expected
    assert global_batches(directory, epoch=1, seed=9) != expected
    for start in range(5):
        assert global_batches(directory, epoch=1, start=start) == expected[start:]


def test_windows_of_equal_size_have_different_orders(tmp_path):
    for split in ("train", "val"):
        write_tokens(tmp_path / split, [16, 16])
    first, second = ([row % 16 for row in batch] for batch in global_batches(tmp_path, batch=16, window=16))
    assert first != second and sorted(first) == sorted(second) == list(range(16))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    window=st.integers(1, 60),
    world=st.integers(1, 3),
    micro=st.integers(1, 3),
    start=st.integers(0, 3),
)
def test_random_shards_windows_and_worlds(tmp_path_factory, shards, window, world, micro, start):
    directory, batch = tmp_path_factory.mktemp("tokens"), 2 * world * micro
    shards = [*shards, batch]
    for split in ("train", "val"):
        write_tokens(directory / split, shards)
    complete = global_batches(directory, batch=batch, window=window)
    start = min(start, len(complete))
    cut = global_batches(directory, batch=batch, window=window, world=world, limit=micro, start=start)
    assert cut == complete[start:]
    rows = flat(complete)
    assert len(set(rows)) == len(rows) == sum(shards) // batch * batch


def test_codes_labels_and_rows_belong_together_and_views_vary(directory):
    codes_of_rows, _ = stored(directory / "train")
    seen = {}
    for epoch in range(12):
        for batch in module(directory, epoch=epoch).train_dataloader():
            assert batch["codes"].dtype == torch.int64 and int(batch["epoch"]) == epoch
            for codes, label, row in zip(batch["codes"], batch["labels"], batch["index"], strict=True):
                assert int(label) == int(row) % TINY.num_classes
                view = int(hash_uniform("view", 0, epoch, row[None]) * 3)  # of the dataset row, not of its position
                assert (codes_of_rows[int(row)][view] == codes.numpy()).all()
                seen.setdefault(int(row), set()).add(view)
    assert np.mean([len(views) for views in seen.values()]) > 2.5


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_row_once(directory, world):
    batches = [list(module(directory, batch=6, rank=r, world=world).val_dataloader()) for r in range(world)]
    rows = sorted(int(i) for rank in batches for b in rank for i in b["index"])
    assert rows == list(range(15))


def break_shard(path, extension, content):
    """Replace a member of a shard's only record; None removes it."""
    members = members_of(path)
    name = next(name for name in members if name.endswith(extension))
    members[name] = content
    path.write_bytes(tar_of({name: content for name, content in members.items() if content is not None}))


SHARD_FAULTS = [
    ("truncated", "cannot be read|truncated"),
    ("cut at a record", "0 rows|its manifest says"),
    ("missing", "cannot be read"),
    ("foreign", "no token shard"),
    ("label", "row 1: label 3 is out of range, the manifest names 3 classes \\(1 such labels\\)"),
    ("code", "row 0, view 2: code 16 is out of range, the codebook has 16 \\(17 such codes\\)"),
    ("shape", "codes are"),
    ("damaged npy", "damaged"),
]


@pytest.mark.parametrize(("name", "word"), SHARD_FAULTS)
def test_faults_name_the_shard(directory, name, word):
    path = directory / "train" / "tokens-000002.tar"
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:700])
    elif name == "cut at a record":
        path.write_bytes(b"\0" * 10240)
    elif name == "missing":
        path.unlink()
    elif name == "foreign":
        break_shard(path, "codes.npy", None)
    elif name == "label":
        break_shard(path, "labels.npy", npy(np.where(np.arange(17) == 1, TINY.num_classes, 2)))
    elif name == "code":  # the first one above the codebook
        codes = np.full((17, 3, 4), TINY.vocab_size - 1, np.uint16)
        codes[:, 2, 1] = TINY.vocab_size
        break_shard(path, "codes.npy", npy(codes))
    elif name == "shape":
        break_shard(path, "codes.npy", npy(np.zeros((17, 1, 4), np.uint16)))
    else:
        break_shard(path, "codes.npy", b"no array")
    assert "tokens-000002.tar" in str(
        assert_user_error(word, lambda: list(module(directory, window=1000).train_dataloader()))
    )


BAD_MANIFESTS = [
    (lambda m: m.update(format="other/1"), "format 'other/1'"),
    (lambda m: m.update(rows=3), "says 3 rows"),
    (lambda m: m.pop("grid"), "damaged"),
    (lambda m: m["shards"][0].pop("sha256"), "damaged"),
]


@pytest.mark.parametrize(("change", "word"), BAD_MANIFESTS)
def test_bad_manifests(directory, change, word):
    path = directory / "train" / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    assert_user_error(word, TokenManifest.load, directory / "train")


def test_unfinished_directory_and_different_tokenizers(directory, tmp_path):
    write_tokens(directory / "val", [9], views=3, tokenizer_hash="another")
    assert_user_error("different tokenizers", module, directory)
    assert_user_error("no finished directory of token shards; make it with", TokenManifest.load, tmp_path / "nothing")
