"""``python -m aim_lightning.metrics.fetch inception``: what published metrics need, downloaded and checked."""

import argparse
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from rich.progress import wrap_file

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path, read_json, sha256_file, write_json
from aim_lightning.utils.npz import NpzFile

SECONDS = 60  # without a byte


@dataclass(frozen=True)
class Download:
    """One file.

    Args:
        url: where it is published.
        path: where it goes.
        sha256: hex, or its beginning as far as it is published; empty = unknown, then what came is recorded.
        arrays: names that an .npz must have.
        then: what can be done with it.
    """

    url: str
    path: str
    sha256: str = ""
    arrays: tuple[str, ...] = ()
    then: str = ""


DOWNLOADS = {
    "inception": Download(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        then="make evaluate EXP=… RUN=…",
    ),
    "vgg": Download(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "weights/vgg16-397923af.pth",
        "397923af",
        then="train a tokenizer with the perceptual loss",
    ),
    "adm": Download(
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "VIRTUAL_imagenet256_labeled.npz",
        "data/reference/VIRTUAL_imagenet256_labeled.npz",
        arrays=("arr_0", "mu", "sigma", "mu_s", "sigma_s"),
        then="make evaluate EXP=… RUN=… ARGS='--reference data/reference/VIRTUAL_imagenet256_labeled.npz'",
    ),
}


def fetch(download: Download, root: Path = Path()) -> Path:
    """Download unless the file is there, check it, and record size and sha256 in NAME.json beside it.

    Raises:
        UserError: no connection, or a file that is not what was published or was recorded before.
    """
    path = root / download.path
    if not path.exists():
        with atomic_path(path) as temporary:
            _download(download.url, temporary)
            _check(download, temporary)
    _record(download, path)
    return path


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer, path.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            with wrap_file(answer, total, description=url.rpartition("/")[2]) as reader:
                while piece := reader.read(1 << 20):
                    file.write(piece)
            done = file.tell()
    except (urllib.error.URLError, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"{url} cannot be fetched ({reason}); try with a connection, or bring the file") from None
    if total and done != total:
        raise UserError(f"{url} ended after {done:,} of {total:,} bytes; fetch again")


def _check(download: Download, path: Path) -> None:
    if not sha256_file(path).startswith(download.sha256):
        raise UserError(f"{download.url} came with sha256 {sha256_file(path)}, published is {download.sha256}…")
    if download.arrays:
        file = NpzFile(path)
        absent = [name for name in download.arrays if name not in file]
        if absent:
            raise UserError(f"{download.url} holds no {', '.join(absent)}: it is another file than expected")


def _record(download: Download, path: Path) -> None:
    """The first fetch writes the record; later ones compare with it."""
    place = path.with_name(f"{path.name}.json")
    facts = {"url": download.url, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if not facts["sha256"].startswith(download.sha256):
        raise UserError(f"{path} is not {download.url} (sha256 differs); remove it and fetch again")
    if place.exists() and read_json(place, "record") != facts:
        raise UserError(f"{path} is not the file that {place.name} records; remove both and fetch again")
    write_json(place, facts)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0, or 2 after a mistake or without a connection."""
    parser = argparse.ArgumentParser(prog="python -m aim_lightning.metrics.fetch", description=__doc__.split("``: ")[1])
    parser.add_argument("what", choices=DOWNLOADS)
    options = parser.parse_args(arguments)
    download = DOWNLOADS[options.what]
    try:
        path = fetch(download)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}  {path.stat().st_size:,} bytes  sha256 {sha256_file(path)}\nnext: {download.then}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
