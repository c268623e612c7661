"""Download the files of downloads.json: verified, recorded, complete or absent."""

import http.client
import json
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download

from aim_lightning.utils.errors import UserError, disk_mistake
from aim_lightning.utils.files import atomic_path, read_json, sha256_file, write_json, writing
from aim_lightning.utils.logging import log
from aim_lightning.utils.npz import NpzFile
from aim_lightning.weights.hub import ask_hub

RECORD = "fetched.json"
FORMAT = "aim_lightning.fetched/1"
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class HubFiles:
    """Files of a model repository on the Hugging Face hub.

    Args:
        repository: OWNER/NAME on the hub.
        files: names in the repository.
        path: directory for the files.
    """

    repository: str
    files: list[str]
    path: str

    @property
    def usage(self) -> str:
        """Return the command that uses the files."""
        return f"aim-lightning weights inspect {self.path}/{self.files[-1]}"


@dataclass(frozen=True)
class UrlFile:
    """One file of a web server.

    Args:
        url: address of the file.
        path: its name here.
        sha256: published hash in hex, or its first digits; empty = unpublished.
        arrays: names that an .npz file must contain.
        usage: the command that uses the file.
    """

    url: str
    path: str
    sha256: str = ""
    arrays: tuple[str, ...] = ()
    usage: str = ""


_table = json.loads(Path(__file__).with_name("downloads.json").read_text(encoding="utf-8"))
DOWNLOADS = {name: (HubFiles if "repository" in row else UrlFile)(**row) for name, row in _table.items()}


def download(entry: HubFiles | UrlFile, root: str | Path = "") -> Path:
    """Download the files of an entry unless they are present, verify them, and record sizes and hashes.

    Args:
        entry: a value of DOWNLOADS.
        root: directory that the entry's path is relative to.

    Returns:
        the file or directory.

    Raises:
        UserError: no connection, files other than those published or recorded, or a disk that cannot be written.
    """
    path = Path(root) / entry.path
    return _from_hub(entry, path) if isinstance(entry, HubFiles) else _from_url(entry, path)


def files(path: Path) -> list[tuple[Path, int, str]]:
    """List path, bytes and sha256 of each downloaded file, from the record.

    Args:
        path: the result of `download`.

    Raises:
        UserError: a directory without a complete record.
    """
    if not path.is_dir():
        record = read_json(path.with_name(f"{path.name}.json"), "record")
        return [(path, record["bytes"], record["sha256"])]
    try:
        record = read_json(path / RECORD, "record")
        if record["format"] == FORMAT and record["files"]:
            return [(path / row["name"], row["bytes"], row["sha256"]) for row in record["files"]]
    except (UserError, KeyError, TypeError):
        pass
    hint = "use them as they are, or remove the directory and download again"
    raise UserError(f"{path} holds files that this command did not download (no complete {RECORD}); {hint}")


def _from_url(entry: UrlFile, path: Path) -> Path:
    if not path.exists():
        with atomic_path(path) as temporary:
            _get(entry, temporary)
            if absent := [name for name in entry.arrays if name not in NpzFile(temporary)]:
                raise UserError(f"{entry.url} holds no {', '.join(absent)}: it is another file than expected")
    facts = {"url": entry.url, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if not facts["sha256"].startswith(entry.sha256):
        raise UserError(f"{path} is not {entry.url} (sha256 differs); remove it and download again")
    record = path.with_name(f"{path.name}.json")
    # Without a published hash, the record of the first download is the only reference.
    if record.exists() and read_json(record, "record") != facts:
        raise UserError(f"{path} is not the file that {record.name} records; remove both and download again")
    write_json(record, facts)
    return path


def _get(entry: UrlFile, path: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none, so a stalled connection would never end
    try:
        torch.hub.download_url_to_file(entry.url, str(path), entry.sha256 or None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and (mistake := disk_mistake(error, path)):
            raise mistake from None
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"{entry.url} cannot be downloaded ({reason}); check the connection and try again") from None
    finally:
        socket.setdefaulttimeout(timeout)


def _from_hub(entry: HubFiles, path: Path) -> Path:
    if path.exists():
        for file, size, sha256 in files(path):
            if not file.is_file() or (file.stat().st_size, sha256_file(file)) != (size, sha256):
                raise UserError(f"{file} is not the downloaded file; remove {path} and download again")
        return path
    info = ask_hub(HfApi().model_info, entry.repository, files_metadata=True)
    metadata = {sibling.rfilename: sibling for sibling in info.siblings or []}
    if absent := [name for name in entry.files if name not in metadata]:
        raise UserError(f"the hub's {entry.repository} no longer has {', '.join(absent)}")
    # The client continues a partial file in this directory; it gets its name when everything is there.
    part = path.with_name(f".{path.name}.part")
    rows = [_get_hub_file(entry, metadata[name], info.sha, part) for name in entry.files]
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's notes about partial files
    with writing(path):
        record = {"format": FORMAT, "repository": entry.repository, "revision": info.sha, "files": rows}
        write_json(part / RECORD, record)
        part.replace(path)
    return path


def _get_hub_file(entry: HubFiles, expected: Any, revision: str, part: Path) -> dict[str, Any]:
    """Download one file of a repository and compare it with the hub's metadata."""
    log(f"downloading {entry.repository}/{expected.rfilename}")
    path = Path(ask_hub(hf_hub_download, entry.repository, expected.rfilename, revision=revision, local_dir=part))
    row = {"name": expected.rfilename, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    # Only large files have a sha256 on the hub.
    published = {"bytes": expected.size, "sha256": expected.lfs and expected.lfs.sha256}
    if wrong := [key for key, value in published.items() if value not in (None, row[key])]:
        # Removed, since the client would take it for complete at the next attempt.
        path.unlink()
        raise UserError(f"{path} has another {wrong[0]} than on the hub; it was removed, download again")
    return row
