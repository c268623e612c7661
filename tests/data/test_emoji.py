"""Test the emoji data set on a small package of the same layout."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT, python
from helpers import assert_contains
from PIL import Image
from test_images import keys

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.config import read_and_check
from aim_lightning.data.images import emoji
from aim_lightning.data.images.directory import open_source
from aim_lightning.data.images.directory_split import name_hash
from aim_lightning.data.images.script import run_script

IN_VAL, *OTHERS = sorted((f"{code:X}" for code in range(0x1F600, 0x1F640)), key=name_hash)
IN_TRAIN = OTHERS[-1]
VARIANTS = ("", "-200D-2640-FE0F", "-200D-2642-FE0F")
# Subjects after the person is left out: one hashes to val, the other one to train.
SUBJECTS = sorted((f"{code:X}" for code in range(0x1F300, 0x1F380)), key=lambda code: name_hash(f"-200D-{code}"))
WITH_PERSON = {SUBJECTS[0]: "1F468", SUBJECTS[-1]: "1F469"}


def png(colour: tuple[int, int, int]) -> bytes:
    """Return a 64x64 PNG with a transparent left half."""
    image = Image.new("RGBA", (64, 64), (*colour, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def entry(unified: str, category: str, skins: bool = False) -> dict:
    row = {"unified": unified, "image": f"{unified.lower()}.png", "category": category}
    tones = [f"{unified}-1F3F{tone}" for tone in "BCDEF"] if skins else []
    variations = {tone[-5:]: {"unified": tone, "image": f"{tone.lower()}.png"} for tone in tones}
    return row | ({"skin_variations": variations} if skins else {})


def write_package(path: Path, entries: list[dict], images: dict[str, bytes]) -> str:
    """Write an npm package and return its sha256."""
    members = {"package/emoji.json": json.dumps(entries).encode()}
    members |= {f"package/img/twitter/64/{name}": content for name, content in images.items()}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entries_and_images() -> tuple[list[dict], dict[str, bytes]]:
    """Return a person of each split in variants, a flag of each split, a copy of a flag, and a skin tone."""
    people = [entry(f"{base}{end}", "People & Body", True) for base in (IN_VAL, IN_TRAIN) for end in VARIANTS]
    flags = [entry(f"{person}-200D-{base}", "Flags") for base, person in WITH_PERSON.items()]
    rows = [*people, *flags, entry("1F1FA", "Flags"), entry("1F3FB", "Component")]
    names = [image["image"] for row in rows for image in (row, *row.get("skin_variations", {}).values())]
    images = {name: png((index, 100, 0)) for index, name in enumerate(names)}
    return rows, images | {"1f1fa.png": images[flags[0]["image"]]}


def test_real_command_writes_categories_and_keeps_variants_in_one_split(tmp_path):
    rows, images = entries_and_images()
    sha256 = write_package(tmp_path / "package.tgz", rows, images)
    words = ["-m", "aim_lightning.data.images.emoji", "--package", tmp_path / "package.tgz"]
    done = python(*words, "--out", tmp_path / "emoji", "--sha256", sha256)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"wrote 19 images to {tmp_path}/emoji/{split}" for split in ("train", "val")]
    for split, base in (("train", IN_TRAIN), ("val", IN_VAL)):
        source = open_source(tmp_path / "emoji" / split)
        if split == "train":
            labels = (tmp_path / "emoji" / "labels.txt").read_text().split()
            assert [int(label) for label in labels] == source.labels.tolist()
        assert source.class_names == ["flags", "people"]
        people = [key for key in keys(source) if key.startswith("people")]
        assert len(people) == 18 and all(key.startswith(f"people/{base.lower()}") for key in people)
        image = source[0]
        assert image.size == (64, 64) and image.getpixel((0, 0)) == (255, 255, 255) != image.getpixel((63, 0))
    assert not list(tmp_path.rglob("1f1fa.png")) and not list(tmp_path.rglob("1f3fb.png"))


def test_a_second_call_replaces_the_first_with_the_same_files(tmp_path, capsys):
    rows, images = entries_and_images()
    sha256 = write_package(tmp_path / "package.tgz", rows, images)
    arguments = ["--package", f"{tmp_path}/package.tgz", "--out", f"{tmp_path}/out", "--sha256", sha256]
    fingerprints = set()
    for _ in range(2):
        assert run_script(emoji.make, arguments) == 0
        fingerprints.add(open_source(tmp_path / "out/train").fingerprint)
    assert len(fingerprints) == 1 and "wrote 19 images" in capsys.readouterr().out


CASES = [
    ({"absent": True}, "does not exist; run `make data-emoji`"),
    ({"sha256": "0" * 64}, "is not emoji-datasource-twitter@16.0.0 (sha256 differs); remove it"),
    ({"images": {}}, "has another layout than emoji-datasource-twitter@16.0.0 ('package/img/twitter/64/"),
    ({"cut": True}, "has another layout than emoji-datasource-twitter@16.0.0 ("),
]


@pytest.mark.parametrize(("fault", "words"), CASES)
def test_a_bad_package_is_one_line_and_leaves_nothing(tmp_path, capsys, fault, words):
    path = tmp_path / "package.tgz"
    rows, images = entries_and_images()
    if "absent" not in fault:
        write_package(path, rows, fault.get("images", images))
    if "cut" in fault:
        path.write_bytes(path.read_bytes()[:-200])
    sha256 = fault.get("sha256") or (hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "")
    assert run_script(emoji.make, ["--package", str(path), "--out", f"{tmp_path}/out", "--sha256", sha256]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert_contains(error, [words])
    assert [entry.name for entry in tmp_path.iterdir()] == ["package.tgz"] * path.exists()


STAGES = ("tokenizer", "aim")


def test_experiments_have_the_classes_and_codes_of_the_images():
    values = [read_and_check(Arguments([ROOT / f"experiments/emoji_{stage}.yaml"], [])).values for stage in STAGES]
    vq, network = (value["model"]["init_args"]["network"] for value in values)
    codes = (vq["image_size"] // 2 ** (len(vq["channel_multipliers"]) - 1)) ** 2
    assert codes == network["num_tokens"] == 256 and vq["codebook_size"] == network["vocab_size"]
    assert network["num_classes"] == 9
