"""Whole files through webdataset's openers, tried again with growing pauses, kept in a local cache."""

import fcntl
import hashlib
import logging
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import webdataset as wds
from webdataset.gopen import rewrite_url

from aim_lightning.data.tokens.format.shard_url import SCHEME
from aim_lightning.utils.errors import TransientError, UserError
from aim_lightning.utils.files import abandoned, atomic_path

# Trying again does not help.
PERMANENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
BY_CURL = re.compile(r"(https?|sftp|ftps|scp):", re.IGNORECASE)
STALL_SECONDS = 30  # without a byte before a transfer counts as broken
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """Bytes of a file; intact: they have the expected sha256."""

    data: bytes
    intact: bool


@dataclass(frozen=True)
class Fetcher:
    """Reads files from directories and URLs.

    Args:
        retries: attempts after the first one.
        pause: seconds before the second attempt; doubled before each further one.
        cache_dir: files from URLs are kept here under their sha256, all of them; None = nowhere.
    """

    retries: int = 5
    pause: float = 1.0
    cache_dir: Path | None = None

    def fetch(self, url: str, sha256: str | None = None) -> Fetched:
        """The whole file. One from a URL with another sha256 counts as a broken transfer and is fetched again.

        Raises:
            TransientError: it cannot be read, after all attempts.
            UserError: another attempt would not help.
        """
        remote = SCHEME.match(url) is not None
        if remote and sha256 and self.cache_dir is not None:
            return self._through_cache(url, sha256)
        return self._fetch(url, sha256, insist=remote)

    def _fetch(self, url: str, sha256: str | None, insist: bool) -> Fetched:
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                fetched = check(_read(url), sha256)
                if fetched.intact or last or not insist:
                    return fetched
                reason = "its sha256 is not the manifest's"
            except (OSError, EOFError, ValueError) as error:
                reason = _reason(error)
                if isinstance(error, (*PERMANENT, ValueError)):
                    raise UserError(_final(url, reason, attempt + 1)) from error
                if last:
                    raise TransientError(_final(url, reason, attempt + 1)) from error
            pause = self.pause * 2**attempt
            log.warning("%s: %s; trying again in %g s", url, reason, pause)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _through_cache(self, url: str, sha256: str) -> Fetched:
        path = self.cache_dir / f"{sha256}.tar"
        cached = _cached(path, sha256)
        if cached:
            return cached
        try:
            with _locked(path):  # one process of this node fetches, the others find the file
                cached = _cached(path, sha256)
                return cached or self._fill(path, url, sha256)
        except OSError as error:
            log.warning("cache %s cannot be used (%s); reading without it", self.cache_dir, error)
            return self._fetch(url, sha256, insist=True)

    def _fill(self, path: Path, url: str, sha256: str) -> Fetched:
        fetched = self._fetch(url, sha256, insist=True)
        if not fetched.intact:
            return fetched
        for leftover in abandoned(path.parent):
            leftover.unlink(missing_ok=True)
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(fetched.data)
        except OSError as error:
            log.warning("%s could not be kept in the cache (%s)", url, error)
        return fetched


def check(data: bytes, sha256: str | None) -> Fetched:
    """Compare with the expected hash, where there is one."""
    return Fetched(data, sha256 is None or hashlib.sha256(data).hexdigest() == sha256)


def _read(url: str) -> bytes:
    with wds.gopen(_once(rewrite_url(url))) as stream:
        return stream.read()


def _once(url: str) -> str:
    """Webdataset's own opener lets curl try again 30 times without a word; attempts are counted here."""
    if not BY_CURL.match(url):
        return url
    stall = f"--speed-time {STALL_SECONDS} --speed-limit 1"  # bytes a second
    return f"pipe:curl -f -s -L --retry 0 --connect-timeout {STALL_SECONDS} {stall} {shlex.quote(url)}"


def _cached(path: Path, sha256: str) -> Fetched | None:
    if not path.exists():
        return None
    fetched = check(path.read_bytes(), sha256)
    if fetched.intact:
        return fetched
    log.warning("%s in the cache is damaged and fetched again", path)
    path.unlink(missing_ok=True)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside, no other process holds the lock of this file; a dead process holds none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    """What a command's exit or an error of the system comes to."""
    found = re.search(r"exit (-?\d+) \(read\)", str(error))
    if found:
        return f"its command ended with exit code {found[1]}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _final(url: str, reason: str, attempts: int) -> str:
    times = "" if attempts == 1 else f" in {attempts} attempts"
    return f"{url} cannot be read{times} ({reason}); restore it, or mend data.path or the connection"
