"""Write image shards (WebDataset tar files) and their manifest."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from aim_lightning.data.images.tar import open_tar
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file, write_json

FORMAT = "aim_lightning.images/1"
MANIFEST = "manifest.json"
EXTENSIONS = ("png", "jpg", "jpeg", "webp")
EncodedImage = tuple[bytes, str, int, str]  # file content, extension, label, key


def write_image_shards(
    records: Iterable[EncodedImage], out: Path, class_names: list[str], rows_per_shard: int, extra: dict | None = None
) -> None:
    """Write encoded images as `images-NNNNNN.tar`, and then manifest.json.

    The same records give the same bytes. Shards and manifest of an earlier call with the same `out` are replaced.

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
        with open_tar(path) as tar:
            for image, extension, label, key in rows:
                _check_record(extension, label, key, len(class_names), keys)
                keys.add(key)
                tar.write({"__key__": key, extension: image, "cls": str(label).encode("ascii")})
        shards.append({"name": path.name, "rows": len(rows), "sha256": sha256_file(path)})
    if not shards:
        raise UserError(f"there are no images to write to {out}")
    for stale in set(out.glob("images-*.tar")) - {out / shard["name"] for shard in shards}:
        stale.unlink()
    manifest = {"format": FORMAT, "class_names": class_names, "rows": len(keys), "shards": shards}
    write_json(out / MANIFEST, manifest | (extra or {}))


def _check_record(extension: str, label: int, key: str, classes: int, keys: set[str]) -> None:
    if extension not in EXTENSIONS:
        raise UserError(f"image {key!r} has extension {extension!r}; use one of {', '.join(EXTENSIONS)}")
    if not 0 <= label < classes:
        raise UserError(f"image {key!r} has label {label}, but there are {classes} class names")
    if not key or "." in key:
        raise UserError(f"image key {key!r} is empty or has a dot, where WebDataset ends a key; rename it")
    if key in keys:
        raise UserError(f"image key {key!r} comes twice; make the keys unique")
