"""`aim-lightning shards`: faults with their record, previews, merging."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from data.builders import encode, members_of, noise, npy, tar_of
from data.test_tokens import stored
from helpers import TINY, TINY_VQ, assert_user_error, flip_bit, write_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aim_lightning.cli import main as cli
from aim_lightning.data.images.shard_writer import write_image_shards
from aim_lightning.data.tokens.format.manifest import Skipped, TokenManifest
from aim_lightning.data.tokens.format.record_format import record_digest
from aim_lightning.data.tokens.read.preview import preview
from aim_lightning.data.tokens.verify import verify_directory, verify_set
from aim_lightning.data.tokens.write.merge import merge_directories
from aim_lightning.models import VQModel
from aim_lightning.utils.files import sha256_file


@pytest.fixture
def directory(tmp_path):
    """Two shards of 1,300 and 40 rows: the first has two records."""
    write_tokens(tmp_path / "train", [1300, 40], views=2)
    return tmp_path / "train"


def change(path, name, edit, reseal=False):
    """Rewrite one array of a shard; `reseal` updates the checksums of the record and the manifest."""
    members = members_of(path)
    members[name] = npy(edit(np.load(io.BytesIO(members[name]))))
    if reseal:
        key = name.split(".")[0]
        record = {n.partition(".")[2]: content for n, content in members.items() if n.startswith(f"{key}.")}
        members[f"{key}.sha256"] = record_digest(record).encode()
    path.write_bytes(tar_of(members))
    if reseal:
        values = json.loads((path.parent / "manifest.json").read_text())
        next(s for s in values["shards"] if s["name"] == path.name)["sha256"] = sha256_file(path)
        (path.parent / "manifest.json").write_text(json.dumps(values))


def texts(directory, tokenizer_hash=None):
    return [str(fault) for fault in verify_directory(directory, tokenizer_hash)]


def test_an_intact_directory_has_no_fault(directory):
    seen = []
    assert verify_directory(directory, "none", seen.append) == [] and sum(seen) == 1340


def test_truncated_tar(directory):
    path = directory / "tokens-000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 15000])
    messages = texts(directory)
    assert any("tokens-000000.tar: truncated or damaged after record tokens-000000-0000" in text for text in messages)
    assert any("tokens-000000.tar: 1000 rows can be read, the manifest says 1300" in text for text in messages)
    assert any("tokens-000000.tar: its sha256 is not the manifest's" in text for text in messages)
    assert all("tokens-000000.tar" in text for text in messages)


def test_flipped_byte_names_the_record(directory):
    path = directory / "tokens-000000.tar"
    with tarfile.open(path) as tar:
        flip_bit(path, tar.getmember("tokens-000000-0001.codes.npy").offset_data + 200)  # still a code of the codebook
    record, file = texts(directory)
    fact = "its checksum differs: bytes were changed after it was written"
    assert record == f"tokens-000000.tar, record tokens-000000-0001: {fact}"
    assert "its sha256 is not the manifest's" in file


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_detected_and_its_shard_named(tmp_path_factory, where, bit):
    directory = tmp_path_factory.mktemp("tokens")
    write_tokens(directory, [9, 12])
    path = directory / "tokens-000001.tar"
    flip_bit(path, int(where * path.stat().st_size), bit)
    messages = verify_directory(directory)
    assert messages and {fault.shard for fault in messages} <= {path.name, "manifest.json"}
    assert any(fault.shard == path.name for fault in messages)


def test_a_failing_disk_is_a_fault_of_its_shard(directory):
    """Reading /proc/self/mem from its start gives the error of a broken disk."""
    path = directory / "tokens-000000.tar"
    path.unlink()
    path.symlink_to("/proc/self/mem")
    messages = texts(directory)
    assert any("tokens-000000.tar: cannot be read to its end ([Errno 5] Input/output error" in t for t in messages)
    assert not any("tokens-000001.tar" in text for text in messages)


def test_missing_shard(directory):
    (directory / "tokens-000001.tar").unlink()
    assert texts(directory) == ["tokens-000001.tar: missing"]


@pytest.mark.parametrize("label", [TINY.num_classes, -1])
def test_label_out_of_range(directory, label):
    def edit(labels):
        labels[[3, 5]] = label
        return labels

    change(directory / "tokens-000001.tar", "tokens-000001-0000.labels.npy", edit, reseal=True)
    assert texts(directory) == [
        f"tokens-000001.tar, record tokens-000001-0000: row 3: label {label} is out of range, the manifest names 3 "
        "classes (2 such labels)"
    ]


def test_code_out_of_range_wrong_views_and_wrong_types(directory):
    path, name = directory / "tokens-000001.tar", "tokens-000001-0000.codes.npy"

    def edit(codes):
        codes[7, 1, 2] = 16
        return codes

    change(path, name, edit, reseal=True)
    assert "row 7, view 1: code 16 is out of range, the codebook has 16 (1 such codes)" in texts(directory)[0]
    change(path, name, lambda codes: codes[:, :1], reseal=True)
    expected = "codes are uint16 (40, 1, 4), expected uint16 (40, 2, 4) (rows, views, codes per image)"
    assert expected in texts(directory)[0]
    change(path, name, lambda codes: codes.astype(np.int32), reseal=True)
    assert "codes are int32" in texts(directory)[0]


def test_an_array_that_cannot_be_decoded_names_its_record_and_the_others_are_read(directory):
    path = directory / "tokens-000000.tar"
    path.write_bytes(tar_of(members_of(path) | {"tokens-000000-0000.codes.npy": b"no array"}))
    checksum, decoding, rows, file = texts(directory)
    assert checksum.startswith("tokens-000000.tar, record tokens-000000-0000: its checksum differs")
    assert decoding.startswith("tokens-000000.tar, record tokens-000000-0000: cannot be decoded (")
    assert rows == "tokens-000000.tar: 300 rows can be read, the manifest says 1300"
    assert file.startswith("tokens-000000.tar: its sha256 is not the manifest's")


def test_foreign_tar_instead_of_a_shard_and_next_to_them(directory, tmp_path):
    write_image_shards([(encode(noise(0)), "png", 0, f"p{i}") for i in range(5)], tmp_path / "x", ["a"], 5)
    (tmp_path / "x" / "images-000000.tar").rename(directory / "tokens-000001.tar")
    (directory / "other.tar").write_bytes(tar_of({"a.txt": b"x"}))
    messages = texts(directory)
    assert "other.tar: foreign: the manifest does not list it" in messages
    assert any("tokens-000001.tar, record p0: lacks codes.npy" in t and "(5 such records)" in t for t in messages)
    (directory / "tokens-000000.tar").write_bytes(b"no tar at all" * 100)
    assert any(text.startswith("tokens-000000.tar: truncated or damaged") for text in texts(directory))


def test_absent_class_wrong_tokenizer_and_an_image_twice(directory):
    for name, rows in (("tokens-000000.tar", (0, 1)), ("tokens-000001.tar", (0,))):
        for record in rows:
            key = f"{name[:-4]}-{record:04d}.labels.npy"
            change(directory / name, key, lambda labels: np.minimum(labels, 1), reseal=True)
    members = members_of(directory / "tokens-000001.tar")
    keys = json.loads(members["tokens-000001-0000.keys.json"])
    assert keys[0] == "row1300"
    keys[0], keys[1] = "row7", keys[2]
    members["tokens-000001-0000.keys.json"] = json.dumps(keys).encode()
    (directory / "tokens-000001.tar").write_bytes(tar_of(members))
    messages = texts(directory, "f" * 64)
    expected = f"another tokenizer wrote the codes: its weights hash is {TokenManifest.load(directory).tokenizer_hash}"
    assert any(expected in text for text in messages)
    assert "manifest.json: class 2 (class2) has no image in any shard" in messages
    second, first = "tokens-000001.tar, record tokens-000001-0000", "tokens-000000.tar, record tokens-000000-0000"
    assert f"{second}: image row7 comes twice (also in {first})" in messages
    assert f"{second}: image row1302 comes twice (also in {second})" in messages


# --- preview


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return VQModel(TINY_VQ).eval()


def write_vq_tokens(directory, tokenizer, rows, **options):
    config = type("Sizes", (), {"num_tokens": 64, "vocab_size": 16, "num_classes": 3})
    return write_tokens(directory, rows, config=config, tokenizer_hash=tokenizer.weights_hash, **options)


def test_preview_shows_the_decoded_codes_of_the_named_class(tokenizer, tmp_path):
    from aim_lightning.utils.pixels import to_uint8

    write_vq_tokens(tmp_path, tokenizer, [5, 7], views=2)
    images, captions = preview(tmp_path, tokenizer, 12, 0, torch.device("cpu"))  # all rows, in the order of the shards
    codes, labels = stored(tmp_path)
    views = [int(caption.split(":")[0]) for caption in captions]
    assert captions == [f"{view}: class{label}" for view, label in zip(views, labels, strict=True)]
    assert set(views) == {0, 1}
    expected = tokenizer.decode(torch.from_numpy(codes[np.arange(12), views].astype(np.int64)))
    assert (to_uint8(expected).int() - images.int()).abs().max() <= 1
    images, captions = preview(tmp_path, tokenizer, 4, 1, torch.device("cpu"))
    assert len(captions) == 4 and images.shape == (4, 3, 16, 16)


def test_preview_refuses_another_tokenizer(tokenizer, tmp_path):
    write_tokens(tmp_path, [5])
    assert_user_error("written by another tokenizer", preview, tmp_path, tokenizer, 4, 0, torch.device("cpu"))


# --- merge


@pytest.fixture
def parts(tmp_path):
    for name, shards, seed in (("a", [13, 5], 0), ("b", [8], 1), ("c", [4], 2)):
        manifest = write_tokens(tmp_path / name, shards, seed=seed, source=f"images of {name}")
        replace(manifest, skipped=[Skipped(f"{name}.png", "broken")]).save(tmp_path / name)
        assert manifest.rows == sum(shards)
    return [tmp_path / name for name in "abc"]


def test_merge_keeps_every_row_in_order_and_where_it_came_from(parts, tmp_path):
    merged = merge_directories(parts[:2], tmp_path / "ab")
    assert merged == TokenManifest.load(tmp_path / "ab") and merged.rows == 26
    for column, expected in zip(stored(tmp_path / "ab"), zip(*map(stored, parts[:2]), strict=True), strict=True):
        assert (column == np.concatenate(expected)).all()
    assert [(s.fingerprint, s.shards) for s in merged.sources] == [("images of a", 2), ("images of b", 1)]
    assert [item.key for item in merged.skipped] == ["a.png", "b.png"]
    assert texts(tmp_path / "ab") == []  # both have a row0: names repeat between sources, not within one
    again = merge_directories([tmp_path / "ab", parts[2]], tmp_path / "abc")
    assert [source.shards for source in again.sources] == [2, 1, 1] and texts(tmp_path / "abc") == []


def test_merge_is_continued_after_an_interruption(parts, tmp_path, monkeypatch):
    calls = []

    def stop(path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sha256_file(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("aim_lightning.data.tokens.write.merge.sha256_file", stop)
        merge_directories(parts, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    merge_directories(parts, tmp_path / "out")
    assert texts(tmp_path / "out") == []


def test_merge_refuses_what_does_not_belong_together(parts, tmp_path):
    out = tmp_path / "out"
    assert_user_error("hold the same images", merge_directories, [parts[0], parts[1], parts[0]], out)
    assert_user_error("two or more directories", merge_directories, parts[:1], out)
    assert_user_error("one of the directories to merge", merge_directories, parts, parts[0])
    write_tokens(tmp_path / "other", [5], tokenizer_hash="another", views=2)
    match = "other has another tokenizer_hash, views than"
    assert_user_error(match, merge_directories, [parts[0], tmp_path / "other"], out)
    assert not out.exists()
    path = parts[1] / "tokens-000000.tar"
    path.write_bytes(path.read_bytes()[:-1])
    assert_user_error("is not the shard that its manifest describes", merge_directories, parts, out)
    assert not (out / "manifest.json").exists()
    path.unlink()
    assert_user_error(r"b/tokens-000000.tar is missing", merge_directories, parts, out)


# --- the command


def shards(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main(["shards", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_info_verify_and_merge_of_sets(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 5)):
        for split, rows in (("train", [30, 9]), ("val", [12])):
            write_tokens(tmp_path / name / split, rows, seed=seed, source=f"{name}{split}")
    code, out, _ = shards(capsys, "info", tmp_path / "a")
    assert code == 0 and "39 in 2 shards" in out and "2 x 2 of 16" in out and "3: class0, class1, class2" in out
    code, out, _ = shards(capsys, "verify", tmp_path / "a")
    assert code == 0 and "39 rows, no faults" in out and "12 rows, no faults" in out
    code, out, _ = shards(capsys, "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "ab")
    assert code == 0 and "78 rows in 4 shards" in out and "24 rows in 2 shards" in out
    (tmp_path / "ab" / "train" / "tokens-000003.tar").unlink()
    write_tokens(tmp_path / "ab" / "val", [12], tokenizer_hash="another")
    (tmp_path / "ab" / "val" / "tokens-000001.tar").unlink()
    code, out, _ = shards(capsys, "verify", tmp_path / "ab")
    assert code == 1 and "ab/train/tokens-000003.tar: missing" in out and "78 rows, 1 fault\n" in out
    assert "val/manifest.json: another tokenizer_hash" in out


@pytest.mark.parametrize("change", [{"class_names": ["a"]}, {"codebook_size": 17}, {"tokenizer_hash": "another"}])
def test_splits_of_one_set_have_the_same_classes_codebook_and_tokenizer(tmp_path, change):
    train, val = directories = [tmp_path / "train", tmp_path / "val"]
    manifests = [write_tokens(directory, [12]) for directory in directories]
    assert list(verify_set(directories)) == []
    replace(manifests[1], **change).save(val)
    (difference,) = verify_set(directories)
    assert difference == f"{val}/manifest.json: another {next(iter(change))} than {train}/manifest.json"


@pytest.mark.parametrize(("present", "absent"), [("train", "val"), ("val", "train")])
def test_a_missing_split_is_a_fault(tmp_path, capsys, present, absent):
    for name, splits in (("half", [present]), ("whole", ["train", "val"])):
        for split in splits:
            write_tokens(tmp_path / name / split, [12], source=f"{name}{split}")
    code, out, _ = shards(capsys, "verify", tmp_path / "half")
    assert code == 1 and f"half/{absent}: missing" in out and f"half/{present}: 12 rows, no faults" in out
    for order in (["half", "whole"], ["whole", "half"]):
        code, out, err = shards(capsys, "merge", *(tmp_path / name for name in order), "--out", tmp_path / "out")
        assert code == 2 and f"half/{absent} does not exist, but another directory has that split" in err
        assert err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert shards(capsys, "verify", tmp_path / "half" / present)[0] == 0  # one split, asked for by its name
    (tmp_path / "half" / absent).mkdir()  # started, not finished
    code, out, _ = shards(capsys, "verify", tmp_path / "half")
    assert code == 1 and f"half/{absent} is no finished" in out and f"half/{present}: 12 rows, no faults" in out


CASES = [
    (["verify", "nowhere"], "nowhere is no directory"),
    (["verify", "."], "no finished directory of token shards"),
    (["merge", "."], "required: --out"),
    (["preview", "."], "required: --tokenizer"),
    (["preview", ".", ".", "--tokenizer", "t", "--out", "x.png"], "several directories"),
    (["fly", "."], "shards has no action 'fly'"),
]


@pytest.mark.parametrize(("arguments", "word"), CASES)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    code, out, err = shards(capsys, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and word in err
