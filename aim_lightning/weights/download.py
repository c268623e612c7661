"""Download published weights and reference files: verified, recorded, complete or absent."""

import http.client
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
from aim_lightning.weights.source import CONFIG, SAFETENSORS

RECORD = "fetched.json"
FORMAT = "aim_lightning.fetched/1"
FIELDS = {"name", "bytes", "sha256"}  # of each file in the record
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
    files: tuple[str, ...]
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


ADM = "data/reference/VIRTUAL_imagenet256_labeled.npz"
DOWNLOADS = {
    "AiM-B": HubFiles("hp-l33/aim-base", (CONFIG, SAFETENSORS), "weights/aim_b"),
    "AiM-L": HubFiles("hp-l33/aim-large", (CONFIG, SAFETENSORS), "weights/aim_l"),
    "AiM-XL": HubFiles("hp-l33/aim-xlarge", (CONFIG, SAFETENSORS), "weights/aim_xl"),
    "VQ-16": HubFiles("FoundationVision/LlamaGen", ("vq_ds16_c2i.pt",), "weights/vq16"),
    "VQ-8": HubFiles("FoundationVision/LlamaGen", ("vq_ds8_c2i.pt",), "weights/vq8"),
    "inception": UrlFile(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        usage="make evaluate EXP=… RUN=…",
    ),
    "vgg": UrlFile(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "weights/vgg16-397923af.pth",
        "397923af",
        usage="train a tokenizer with the perceptual loss",
    ),
    "adm": UrlFile(
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "VIRTUAL_imagenet256_labeled.npz",
        ADM,
        arrays=("arr_0", "mu", "sigma", "mu_s", "sigma_s"),
        usage=f"make evaluate EXP=… RUN=… ARGS='--reference {ADM}'",
    ),
}


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
    """
    if path.is_dir():
        return [(path / row["name"], row["bytes"], row["sha256"]) for row in _read_record(path)]
    record = read_json(path.with_name(f"{path.name}.json"), "record")
    return [(path, record["bytes"], record["sha256"])]


def _from_url(entry: UrlFile, path: Path) -> Path:
    if not path.exists():
        with atomic_path(path) as temporary:
            _get(entry, temporary)
            absent = [name for name in entry.arrays if name not in NpzFile(temporary)]
            if absent:
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
            if not file.is_file() or file.stat().st_size != size or sha256_file(file) != sha256:
                raise UserError(f"{file} is not the downloaded file; remove {path} and download again")
        return path
    # The client continues a partial file in this directory; it gets its name when everything is there.
    part = path.with_name(f".{path.name}.part")
    facts = _ask_hub(entry)
    rows = [_get_hub_file(entry, name, facts["files"], facts["revision"], part) for name in entry.files]
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's notes about partial files
    head = {"format": FORMAT, "repository": entry.repository, "revision": facts["revision"]}
    with writing(path):
        write_json(part / RECORD, {**head, "files": rows})
        part.replace(path)
    return path


def _ask_hub(entry: HubFiles) -> dict[str, Any]:
    """Return the newest revision, and the metadata of its files by name."""
    info = ask_hub(HfApi().model_info, entry.repository, files_metadata=True)
    metadata = {sibling.rfilename: sibling for sibling in info.siblings or []}
    absent = [name for name in entry.files if name not in metadata]
    if absent:
        raise UserError(f"the hub's {entry.repository} no longer has {', '.join(absent)}")
    return {"revision": info.sha, "files": metadata}


def _get_hub_file(entry: HubFiles, name: str, metadata: dict[str, Any], revision: str, part: Path) -> dict[str, Any]:
    log(f"downloading {entry.repository}/{name}")
    path = Path(ask_hub(hf_hub_download, entry.repository, name, revision=revision, local_dir=part))
    row = {"name": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    large = metadata[name].lfs  # only large files have a sha256 on the hub
    expected = {"bytes": metadata[name].size, "sha256": large.sha256 if large else None}
    wrong = [key for key, value in expected.items() if value is not None and row[key] != value]
    if wrong:
        # Removed, since the client would take it for complete at the next attempt.
        path.unlink()
        raise UserError(f"{path} has another {wrong[0]} than on the hub; it was removed, download again")
    return row


def _read_record(directory: Path) -> list[dict[str, Any]]:
    record = read_json(directory / RECORD, "record") if (directory / RECORD).is_file() else None
    rows = record.get("files") if isinstance(record, dict) and record.get("format") == FORMAT else None
    complete = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= FIELDS for row in rows)
    if not complete or not rows:
        advice = "use them as they are, or remove the directory and download again"
        raise UserError(f"{directory} holds files that this command did not download (no complete {RECORD}); {advice}")
    return rows
