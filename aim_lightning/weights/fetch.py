"""``python -m aim_lightning.weights.fetch AiM-B``: published weights from the hub into weights/."""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, sha256_file, write_json, writing
from aim_lightning.weights.files import CONFIG, SAFETENSORS
from aim_lightning.weights.hub import hub_mistake

RECORD = "fetched.json"
FORMAT = "aim_lightning.fetched/1"
FIELDS = {"name", "bytes", "sha256"}  # of each file in it


@dataclass(frozen=True)
class Published:
    """Where weights are published: hub repository, the files wanted of it, and the directory below weights/."""

    repository: str
    files: tuple[str, ...]
    directory: str


PUBLISHED = {
    "AiM-B": Published("hp-l33/aim-base", (CONFIG, SAFETENSORS), "aim_b"),
    "AiM-L": Published("hp-l33/aim-large", (CONFIG, SAFETENSORS), "aim_l"),
    "AiM-XL": Published("hp-l33/aim-xlarge", (CONFIG, SAFETENSORS), "aim_xl"),
    "VQ-16": Published("FoundationVision/LlamaGen", ("vq_ds16_c2i.pt",), "vq16"),
    "VQ-8": Published("FoundationVision/LlamaGen", ("vq_ds8_c2i.pt",), "vq8"),
}


def fetch(model: str, root: str | Path = "weights") -> Path:
    """Download one model's files, check them against the hub's sizes and hashes, and record them in fetched.json.

    An interrupted download continues; the directory appears when everything is there.

    Returns:
        the directory, also when it was fetched before and its files are still what the record says.

    Raises:
        UserError: not published, no connection, files that the hub does not have, damaged ones, or a disk that does not
            take them.
    """
    if model not in PUBLISHED:
        raise UserError(f"{model} is not published; use one of {', '.join(PUBLISHED)}")
    published, directory = PUBLISHED[model], Path(root) / PUBLISHED[model].directory
    if directory.exists():
        _check_record(directory)
        return directory
    part = directory.with_name(f".{directory.name}.part")
    facts = _ask_hub(published)
    rows = [_download(published, name, facts["files"], facts["revision"], part) for name in published.files]
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's notes about partial files
    head = {"format": FORMAT, "model": model, "repository": published.repository, "revision": facts["revision"]}
    with writing(directory):
        write_json(part / RECORD, {**head, "files": rows})
        part.replace(directory)
    return directory


def _ask_hub(published: Published) -> dict[str, Any]:
    """The newest revision, and size and sha256 (large files) of each of its files."""
    try:
        info = HfApi().model_info(published.repository, files_metadata=True)
    except Exception as error:  # see hub.download
        raise UserError(hub_mistake(published.repository, error)) from None
    files = {entry.rfilename: entry for entry in info.siblings or []}
    absent = [name for name in published.files if name not in files]
    if absent:
        raise UserError(f"the hub's {published.repository} has no {', '.join(absent)} any more")
    return {"revision": info.sha, "files": files}


def _download(published: Published, name: str, files: dict[str, Any], revision: str, part: Path) -> dict[str, Any]:
    print(f"fetching {published.repository}/{name}", flush=True)
    try:
        path = Path(hf_hub_download(published.repository, name, revision=revision, local_dir=part))
    except Exception as error:  # see hub.download
        raise UserError(hub_mistake(published.repository, error)) from None
    row = {"name": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    large = files[name].lfs
    expected = {"bytes": files[name].size, "sha256": large.sha256 if large else None}
    wrong = [key for key, value in expected.items() if value is not None and row[key] != value]
    if wrong:
        path.unlink()
        raise UserError(f"{path} came with another {wrong[0]} than the hub says; it was removed, fetch again")
    return row


def _check_record(directory: Path) -> None:
    """The files must be those that were fetched."""
    for row in _rows(directory):
        path = directory / row["name"]
        if not path.is_file() or path.stat().st_size != row["bytes"] or sha256_file(path) != row["sha256"]:
            raise UserError(f"{path} is not the file that was fetched; remove {directory} and fetch again")


def _rows(directory: Path) -> list[dict[str, Any]]:
    """name, bytes and sha256 of each file that was fetched into the directory.

    Raises:
        UserError: it has no such record.
    """
    record = read_json(directory / RECORD, "record") if (directory / RECORD).is_file() else None
    rows = record.get("files") if isinstance(record, dict) and record.get("format") == FORMAT else None
    known = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= FIELDS for row in rows)
    if not known or not rows:
        raise UserError(
            f"{directory} holds files that this command did not download (no complete {RECORD}); use them as they are, "
            "or remove the directory and download again"
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a mistake or without a connection."""
    parser = argparse.ArgumentParser(
        prog="python -m aim_lightning.weights.fetch", description="Fetch published weights from the Hugging Face hub."
    )
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(PUBLISHED)}")
    parser.add_argument("--out", type=Path, default=Path("weights"), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        directory = fetch(options.model, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in _rows(directory):
        print(f"{directory / row['name']}  {row['bytes']:,} bytes  sha256 {row['sha256']}")
    print(f"next: aim-lightning weights inspect {directory / row['name']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
