"""Twemoji's 64x64 images by category, from the npm package emoji-datasource-twitter.

python -m aim_lightning.data.images.emoji --package data/emoji-datasource-twitter-16.0.0.tgz --out data/emoji
"""

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from aim_lightning.data.images.directory_split import name_hash
from aim_lightning.data.images.script import run_script
from aim_lightning.data.images.tar import TAR_ERRORS
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_directory, sha256_file

PACKAGE = "emoji-datasource-twitter@16.0.0"
SHA256 = "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
VAL_FRACTION = 0.1
# Women, men and people, and persons facing right, are the same subject: they belong to one split.
VARIANT = re.compile(r"-200D-(2640|2642|27A1)-FE0F|^(1F468|1F469|1F9D1)(?=-)")


def make(package: Path, out: Path, sha256: str = SHA256) -> None:
    """Unpack the images to out/train/CATEGORY and out/val/CATEGORY; identical images are written once.

    out/labels.txt contains the class number of each training image, for `evaluate --labels`.

    Args:
        package: file that `npm pack` wrote.
        out: directory, created if missing; an earlier version in it is replaced.
        sha256: expected hash of the package in hex.

    Raises:
        UserError: the package is missing, or is not the expected one.
    """
    if not package.is_file():
        raise UserError(f"{package} does not exist; run `make data-emoji`, or `npm pack {PACKAGE}`")
    if sha256_file(package) != sha256:
        raise UserError(f"{package} is not {PACKAGE} (sha256 differs); remove it and download again")
    written: set[bytes] = set()
    categories: dict[str, list[str]] = {"train": [], "val": []}
    with atomic_directory(out) as temporary:
        for split, category, name, content in _images(package):
            if content not in written:
                written.add(content)
                categories[split].append(category)
                path = temporary / split / category / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        names = sorted(set(categories["train"]))
        labels = [f"{names.index(category)}\n" for category in sorted(categories["train"])]
        (temporary / "labels.txt").write_text("".join(labels))
    for split, members in categories.items():
        print(f"wrote {len(members):,} images to {out}/{split}")


def _images(package: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield split, category, file name and content of each image, in the order of emoji.json."""
    try:
        with tarfile.open(package) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        for emoji in json.loads(contents["package/emoji.json"]):
            # The five members of Component are samples of skin tones.
            if emoji["category"] != "Component":
                category = emoji["category"].partition(" ")[0].lower()  # "People & Body" is people
                split = "val" if name_hash(VARIANT.sub("", emoji["unified"])) < VAL_FRACTION else "train"
                for image in (emoji, *emoji.get("skin_variations", {}).values()):
                    yield split, category, image["image"], contents[f"package/img/twitter/64/{image['image']}"]
    except (*TAR_ERRORS, KeyError, ValueError) as error:
        raise UserError(f"{package} has another layout than {PACKAGE} ({error}); set --package to its file") from None


if __name__ == "__main__":
    sys.exit(run_script(make))
