"""`aim-lightning shards info|verify|preview|merge PATH`: look into token shards and merge them."""

import argparse
from pathlib import Path
from typing import Any

from aim_lightning.cli.common_options import number, option
from aim_lightning.cli.registry import Command
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.utils.errors import UserError, shorten
from aim_lightning.utils.logging import log_next
from aim_lightning.utils.progress import ProgressBar, progress

HELP = "inspect, verify, preview or merge token shards"
NEEDS_CONFIG = False
SPLITS = ("train", "val")
SHOWN = 10  # names of classes, keys of images


def _add_paths(parser: argparse.ArgumentParser) -> None:
    paths = "token directories: one with train/ and val/, or one of those; merge takes several"
    parser.add_argument("paths", nargs="+", metavar="PATH", type=_directory, help=paths)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser)
    tokenizer = "also compare with the hash of these tokenizer weights (or .yaml)"
    parser.add_argument("--tokenizer", metavar="SOURCE", help=tokenizer)


def _add_preview(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser)
    tokenizer = "run, weights or .yaml of the tokenizer that decodes the codes"
    parser.add_argument("--tokenizer", required=True, metavar="SOURCE", help=tokenizer)
    parser.add_argument("--num", **option("images, chosen at random", 32, type=number(int, 1)))
    parser.add_argument("--seed", **option("seed of the choice", 0, type=number(int, 0, 2**63 - 1)))
    parser.add_argument("--out", metavar="FILE", help="PNG file (default: PATH/preview.png)")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the new token directory")


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise UserError(f"{path} is no directory; give one that `make tokenize` wrote")
    return path


def _directories(path: Path) -> list[Path]:
    """Return the directories with a manifest: train/ and val/ below the path, or the path itself."""
    return [path / split for split in SPLITS if (path / split).is_dir()] or [path]


def info(config: None, options: argparse.Namespace) -> int:
    """Print the content of token directories."""
    for directory in [directory for path in options.paths for directory in _directories(path)]:
        manifest = TokenManifest.load(directory)
        size = sum(path.stat().st_size for path in directory.glob("tokens-*.tar"))
        lines = [
            ("images", f"{manifest.rows:,} in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB"),
            ("views", f"{manifest.views} per image"),
            ("codes", f"{manifest.grid[0]} x {manifest.grid[1]} of {manifest.codebook_size}"),
            ("classes", f"{len(manifest.class_names)}: {shorten(manifest.class_names, SHOWN)}"),
            ("tokenizer", f"weights hash {manifest.tokenizer_hash}"),
        ]
        if manifest.skipped:
            keys = [item.key for item in manifest.skipped]
            lines.append(("skipped", f"{len(keys)}: {shorten(keys, SHOWN)}"))
        for source in manifest.sources:
            encoding = ", ".join(f"{name} {value}" for name, value in source.encoding.items()) or "unknown"
            lines.append(("source", f"{source.fingerprint[:12]}…, {source.shards} shards; encoding: {encoding}"))
        print(directory, *(f"  {name:10s}{text}" for name, text in lines), sep="\n")
    return 0


def verify(config: None, options: argparse.Namespace) -> int:
    """Check every record and print every fault; return 1 if there is one."""
    tokenizer_hash = _tokenizer(options.tokenizer).weights_hash if options.tokenizer else None
    count = sum(_verify(path, tokenizer_hash) for path in options.paths)
    if not count and tokenizer_hash is None:
        print("not compared with a tokenizer; add --tokenizer RUN, or look at some images with `shards preview`")
    return 1 if count else 0


def _verify(path: Path, tokenizer_hash: str | None) -> int:
    """Print the faults of a set and return their number."""
    from aim_lightning.data.tokens.verify import verify_set

    present, finished = _directories(path), []
    absent = [path / split for split in SPLITS if present != [path] and path / split not in present]
    faults = [f"{split}: missing; tokenize again, which makes what is absent" for split in absent]
    for directory in present:
        try:
            TokenManifest.load(directory)
            finished.append(directory)
        except UserError as error:  # the other split of a set is checked nevertheless
            if directory == path:
                raise
            faults.append(str(error))
    faults += verify_set(finished)
    print(*faults, sep="\n", end="\n" if faults else "")
    return len(faults) + sum(_verify_directory(directory, tokenizer_hash) for directory in finished)


def _verify_directory(directory: Path, tokenizer_hash: str | None) -> int:
    """Print the faults of a directory and return their number."""
    from aim_lightning.data.tokens.verify import verify_directory

    rows = TokenManifest.load(directory).rows
    with ProgressBar(f"verifying {directory}", rows, "rows") as bar:
        faults = verify_directory(directory, tokenizer_hash, bar.advance)
    for fault in faults:
        print(f"{directory}/{fault}")
    print(f"{directory}: {rows:,} rows, {len(faults) or 'no'} fault{'' if len(faults) == 1 else 's'}")
    return len(faults)


def preview(config: None, options: argparse.Namespace) -> int:
    """Decode some records of each directory into a grid of images."""
    import torch

    from aim_lightning.data.tokens.read.preview import preview
    from aim_lightning.utils.grid import captioned_grid, save_png

    directories = [directory for path in options.paths for directory in _directories(path)]
    if options.out and len(directories) > 1:
        raise UserError("--out is one file, but there are several directories; name one of them, or leave --out away")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = _tokenizer(options.tokenizer).to(device)
    for directory in progress(directories, "decoding"):
        out = Path(options.out) if options.out else directory / "preview.png"
        images, captions = preview(directory, tokenizer, options.num, options.seed, device)
        save_png(captioned_grid(images, captions), out)
        print(f"{len(captions)} images of {directory}: {out}")
    return 0


def _tokenizer(source: str) -> Any:
    from aim_lightning.cli.config import tokenizer_source
    from aim_lightning.pipeline import load_tokenizer

    return load_tokenizer(tokenizer_source(source))


def merge(config: None, options: argparse.Namespace) -> int:
    """Write the records of several token directories into a new one."""
    from aim_lightning.data.tokens.write.merge import merge_directories

    paths, out = options.paths, Path(options.out)
    splits = [split for split in SPLITS if any((path / split).is_dir() for path in paths)] or [""]
    absent = [path / split for path in paths for split in splits if not (path / split).is_dir()]
    if absent:
        raise UserError(f"{absent[0]} does not exist, but another directory has that split; merge complete sets")
    for split in splits:
        manifest = merge_directories([path / split for path in paths], out / split)
        print(f"{out / split}: {manifest.rows:,} rows in {len(manifest.shards)} shards of {len(paths)} directories")
    log_next(f"make shards ARGS='verify {out}'")
    return 0


ACTIONS = {
    "info": Command("print the content of token directories", info, _add_paths, needs_config=False),
    "verify": Command("check every record and print every fault", verify, _add_verify, needs_config=False),
    "preview": Command("decode some records into a grid of images", preview, _add_preview, needs_config=False),
    "merge": Command("merge several token directories into one", merge, _add_merge, needs_config=False),
}
