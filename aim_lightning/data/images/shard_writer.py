"""Image shards: WebDataset tar files of KEY.png (or jpg, jpeg, webp) and KEY.cls, and their manifest.

`write_image_shards` writes them. The other functions read the index for `directory.ShardSource`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from aim_lightning.data.images.decode import require_regular
from aim_lightning.data.images.tar import TAR_ERRORS, open_tar, tar_members
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, sha256_file, write_json

FORMAT = "aim_lightning.images/1"
MANIFEST = "manifest.json"
EXTENSIONS = ("png", "jpg", "jpeg", "webp")
EncodedImage = tuple[bytes, str, int, str]  # file content, extension, label, key


def write_image_shards(
    records: Iterable[EncodedImage],
    out: Path,
    class_names: list[str],
    rows_per_shard: int,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write encoded images as `images-NNNNNN.tar` and, last, manifest.json; the same records give the same bytes.

    Shards and manifest of an earlier call with the same `out` are replaced.

    Args:
        records: (encoded image, extension, label, key) in dataset order; keys are unique and contain no dots.
        out: directory, created if missing.
        class_names: names by label.
        rows_per_shard: images per shard; the last one may have fewer.
        extra: additional entries for the manifest.

    Raises:
        UserError: no records, or one that could not be read back.
    """
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard is {rows_per_shard}; it must be at least 1")
    out = Path(out)
    (out / MANIFEST).unlink(missing_ok=True)  # it describes shards that are about to change
    shards, keys, remaining = [], set(), iter(records)
    while rows := list(islice(remaining, rows_per_shard)):
        path = out / f"images-{len(shards):06d}.tar"
        _write_shard(path, rows, len(class_names), keys)
        shards.append({"name": path.name, "rows": len(rows), "sha256": sha256_file(path)})
    if not shards:
        raise UserError(f"there are no images to write to {out}")
    for stale in set(out.glob("images-*.tar")) - {out / shard["name"] for shard in shards}:
        stale.unlink()
    rows_written = sum(shard["rows"] for shard in shards)
    manifest = {"format": FORMAT, "class_names": class_names, "rows": rows_written, "shards": shards}
    write_json(out / MANIFEST, {**manifest, **(extra or {})})


def _write_shard(path: Path, rows: list[EncodedImage], classes: int, keys: set[str]) -> None:
    with open_tar(path) as tar:
        for image, extension, label, key in rows:
            _check_record(extension, label, key, classes, keys)
            keys.add(key)
            tar.write({"__key__": key, extension: image, "cls": str(label).encode("ascii")})


def _check_record(extension: str, label: int, key: str, classes: int, keys: set[str]) -> None:
    if extension not in EXTENSIONS:
        raise UserError(f"image {key!r} has extension {extension!r}; use one of {', '.join(EXTENSIONS)}")
    if not 0 <= label < classes:
        raise UserError(f"image {key!r} has label {label}, but there are {classes} class names")
    if not key or "." in key:
        raise UserError(f"image key {key!r} is empty or has a dot, where WebDataset ends a key; rename it")
    if key in keys:
        raise UserError(f"image key {key!r} comes twice; make the keys unique")


@dataclass
class ShardRow:
    """An image in a shard: its key, label, offset and size in the tar file (bytes)."""

    key: str
    label: int
    offset: int
    size: int


def shard_paths(directory: Path) -> list[Path]:
    """Return the directory's tar files by name, without hidden ones.

    Args:
        directory: directory of shards.
    """
    return sorted(path for path in directory.glob("*.tar") if not path.name.startswith("."))


def index_shard(path: Path) -> list[ShardRow]:
    """Return the images of a shard in the order of the file, without decoding them.

    Args:
        path: the tar file.

    Raises:
        UserError: a damaged tar, or a key without exactly one image and one .cls.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    for key, extension, member, content in _image_members(path):
        if key in (labels if extension == "cls" else images):
            raise UserError(f"shard {path}, key {key}: more than one .{extension} or image; make keys unique")
        if extension == "cls":
            labels[key] = _parse_label(content, f"shard {path}, key {key}")
        else:
            images[key] = (member.offset_data, member.size)
    for key in images.keys() ^ labels.keys():
        missing = ".cls with its class index" if key in images else f"image ({', '.join(EXTENSIONS)})"
        raise UserError(f"shard {path}, key {key}: there is no {missing}; write the shard again (data/README.md)")
    return [ShardRow(key, labels[key], *span) for key, span in images.items()]


def _image_members(path: Path) -> Iterator[tuple]:
    """Yield (key, lower-case extension, member, content of a .cls) of images and labels; other members are ignored."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            for tar, member in tar_members(file):
                directory, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key, extension = f"{directory}/{stem}".lstrip("/"), extension.lower()
                if member.isreg() and extension in (*EXTENSIONS, "cls"):
                    content = tar.extractfile(member).read() if extension == "cls" else b""
                    yield key, extension, member, content
    except TAR_ERRORS as error:
        raise UserError(f"shard {path} is truncated or damaged ({error}); restore or write it again") from error


def _parse_label(content: bytes, where: str) -> int:
    try:
        return int(content.decode("ascii"))
    except ValueError:
        raise UserError(f"{where}: .cls holds {content[:20]!r}, expected a class index such as 7") from None


def load_manifest(directory: Path) -> dict[str, Any] | None:
    """Read manifest.json and check it against the tar files; return None if it does not exist.

    Args:
        directory: directory of shards.

    Raises:
        UserError: another format, a damaged file, or other shards than those in the directory.
    """
    path = directory / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path, "image manifest")
    actual = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if actual != FORMAT:
        raise UserError(f"{path} has format {actual!r}, expected {FORMAT!r}; remove it or write the shards again")
    try:
        listed = {shard["name"] for shard in manifest["shards"] if shard["sha256"] and shard["rows"] >= 0}
        manifest["class_names"] = [str(name) for name in manifest["class_names"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove it or write the shards again") from None
    present = {shard.name for shard in shard_paths(directory)}
    if absent := sorted(listed - present):
        raise UserError(f"{path} lists shard {absent[0]}, which is absent; restore it or write the shards again")
    if unlisted := sorted(present - listed):
        raise UserError(f"shard {directory / unlisted[0]} is not listed in {path}; remove one of the two")
    return manifest
