"""Token shards: order, views, faults."""

import json
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data.builders import members_of, npy, tar_of
from helpers import TINY, assert_user_error, write_tokens

from aim_lightning.data.tokens.datamodule import TokenDataModule
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.record_format import stored_records
from aim_lightning.utils.random import hash_uniform


def flat(lists):
    return list(chain.from_iterable(lists))


def module(
    directory, *, batch=8, rank=0, world=1, limit=None, workers=0, window=20, seed=0, epoch=0, start=0, fetch=None
):
    options = {"num_workers": workers, "window_rows": window, "seed": seed, **(fetch or {})}
    data = TokenDataModule(str(directory), batch, limit, val_batch_size=7, **options)
    return set_up(data, rank, world, epoch, start)


def set_up(data, rank, world, epoch, start):
    """Give a DataModule a rank and a position, and return it."""
    data.setup("fit")
    data.plan_for(world)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy)
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
    loaders = [module(directory, batch=6, rank=r, world=world).val_dataloader() for r in range(world)]
    batches = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(rank) for rank in batches]
    rows = sorted(int(i) for rank in batches for b in rank for i in b["index"])
    assert rows == list(range(15))


def replace_member(path, name, content):
    """Replace a member of a shard's only record."""
    path.write_bytes(tar_of(members_of(path) | {f"{path.stem}-0000.{name}": content}))


CODES = np.full((17, 3, 4), TINY.vocab_size - 1, np.uint16)
CODES[:, 2, 1] = TINY.vocab_size  # the first code above the codebook
LABELS = np.where(np.arange(17) == 1, TINY.num_classes, 2)
SHARD_FAULTS = [
    (lambda path: path.write_bytes(path.read_bytes()[:700]), "cannot be read|truncated"),
    (lambda path: path.write_bytes(b"\0" * 10240), "0 rows|its manifest says"),
    (Path.unlink, "cannot be read"),
    (lambda path: path.write_bytes(tar_of({f"{path.stem}-0000.txt": b"x"})), "no token shard"),
    (partial(replace_member, name="labels.npy", content=npy(LABELS)), r"row 1: label 3 .* 3 classes \(1 such labels\)"),
    (partial(replace_member, name="codes.npy", content=npy(CODES)), r"row 0, view 2: code 16 .* \(17 such codes\)"),
    (partial(replace_member, name="codes.npy", content=npy(CODES[:, :1])), "codes are"),
    (partial(replace_member, name="codes.npy", content=b"no array"), "damaged"),
]


@pytest.mark.parametrize(("damage", "word"), SHARD_FAULTS)
def test_faults_name_the_shard(directory, damage, word):
    path = directory / "train" / "tokens-000002.tar"
    damage(path)
    error = assert_user_error(word, lambda: list(module(directory, window=1000).train_dataloader()))
    assert path.name in str(error)


BAD_MANIFESTS = [
    (lambda m: m.update(format="other/1"), "format 'other/1'"),
    (lambda m: m.update(rows=3), "says 3 rows"),
    (lambda m: m.pop("grid"), "damaged"),
    (lambda m: m["shards"][0].pop("sha256"), "damaged"),
    (lambda m: m["shards"][0].update(rows="a"), "manifest.json: shards.rows is 'a'; it must be a whole number"),
    (lambda m: m.update(codebook_size=None), "manifest.json: codebook_size is None; it must be a whole number"),
    (lambda m: m.update(views=0), "manifest.json: views is 0; it must be a whole number, 1 or more"),
]


@pytest.mark.parametrize(("change", "word"), BAD_MANIFESTS)
def test_bad_manifests(directory, change, word):
    path = directory / "train" / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    assert_user_error(word, TokenManifest.load, directory / "train")


def test_a_manifest_that_is_no_text(directory):
    (directory / "train" / "manifest.json").write_bytes(bytes(range(256)))
    assert_user_error("manifest.json is not readable JSON", TokenManifest.load, directory / "train")


def test_unfinished_directory_and_different_tokenizers(directory, tmp_path):
    write_tokens(directory / "val", [9], views=3, tokenizer_hash="another")
    assert_user_error("different tokenizers", module, directory)
    assert_user_error("no finished directory of token shards; make it with", TokenManifest.load, tmp_path / "nothing")


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_only_training_batches_for_a_gpu_are_pinned(directory, monkeypatch, device, pinned):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a CPU training on a machine with a GPU
    data = module(directory)
    data.trainer.strategy.root_device = torch.device(device)
    assert data.train_dataloader().pin_memory is pinned and data.val_dataloader().pin_memory is False
