"""Read whole files through webdataset's openers, with retries and a local cache."""

import fcntl
import hashlib
import logging
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import webdataset as wds
from webdataset.gopen import rewrite_url

from aim_lightning.data.tokens.format.manifest import is_remote
from aim_lightning.utils.errors import TransientError, UserError, first_line
from aim_lightning.utils.files import make_directory, remove_abandoned, require_regular, write_bytes

# Errors that another attempt does not resolve.
PERMANENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
CURL_URL = re.compile(r"(https?|sftp|ftps|scp):", re.IGNORECASE)
STALL_SECONDS = 30  # a transfer without a byte for this long is aborted
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """Bytes of a file; `intact` is True if they have the expected sha256."""

    data: bytes
    intact: bool


@dataclass(frozen=True)
class Fetcher:
    """Reads files from directories and URLs.

    Args:
        retries: attempts after the first one.
        pause: seconds before the second attempt, doubled before each further one.
        cache_dir: directory that keeps all files from URLs under their sha256; None = no cache.
    """

    retries: int = 5
    pause: float = 1.0
    cache_dir: Path | None = None

    def fetch(self, url: str, sha256: str | None = None) -> Fetched:
        """Read a whole file.

        Args:
            url: path, or URL that webdataset opens.
            sha256: expected hash. A file from a URL with another hash is fetched again, as after a broken transfer.

        Raises:
            TransientError: the file cannot be read after all attempts.
            UserError: the file cannot be read, and another attempt would not help.
        """
        if is_remote(url) and sha256 and self.cache_dir is not None:
            return self._fetch_cached(url, sha256)
        return self._fetch(url, sha256)

    def _fetch(self, url: str, sha256: str | None) -> Fetched:
        attempt = 0
        while True:
            last = attempt == self.retries
            try:
                fetched = check(_read(url), sha256)
                # A local file with another hash is damaged on the disk: reading it again gives the same bytes.
                if fetched.intact or last or not is_remote(url):
                    return fetched
                reason = "its sha256 is not the manifest's"
            except (OSError, EOFError, ValueError) as error:
                reason, permanent = _reason(error), isinstance(error, (*PERMANENT, ValueError))
                if last or permanent:
                    times = "" if attempt == 0 else f" in {attempt + 1} attempts"
                    fact = f"{url} cannot be read{times} ({reason}); restore it, or fix data.path or the connection"
                    raise (UserError if permanent else TransientError)(fact) from error
            pause = self.pause * 2**attempt  # a busy server recovers sooner if clients wait longer
            log.warning("%s: %s; trying again in %g s", url, reason, pause)
            time.sleep(pause)
            attempt += 1

    def _fetch_cached(self, url: str, sha256: str) -> Fetched:
        path = self.cache_dir / f"{sha256}.tar"
        if cached := _read_cache(path, sha256):
            return cached
        try:
            make_directory(path.parent)
            # One process per node fetches. The others wait for the lock, which a dying process releases.
            with path.with_name(f".{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if cached := _read_cache(path, sha256):
                    return cached
                fetched = self._fetch(url, sha256)
                if fetched.intact:
                    _fill_cache(path, fetched.data)
                return fetched
        except OSError as error:
            log.warning("cache %s cannot be used (%s); reading without it", self.cache_dir, error)
            return self._fetch(url, sha256)


def check(data: bytes, sha256: str | None) -> Fetched:
    """Compare bytes with their expected hash.

    Args:
        data: content of a file.
        sha256: expected hex digest; None = accept any content.
    """
    return Fetched(data, sha256 is None or hashlib.sha256(data).hexdigest() == sha256)


def _read(url: str) -> bytes:
    if not is_remote(url):
        require_regular(url)
    url = rewrite_url(url)
    if CURL_URL.match(url):
        # webdataset's own curl command retries 30 times without a log line; here `Fetcher` counts the attempts.
        stall = f"--speed-time {STALL_SECONDS} --speed-limit 1"  # bytes per second
        url = f"pipe:curl -f -s -L --retry 0 --connect-timeout {STALL_SECONDS} {stall} {shlex.quote(url)}"
    with wds.gopen(url) as stream:
        return stream.read()


def _read_cache(path: Path, sha256: str) -> Fetched | None:
    if not path.exists():
        return None
    fetched = check(path.read_bytes(), sha256)
    if fetched.intact:
        return fetched
    log.warning("%s in the cache is damaged and fetched again", path)
    path.unlink(missing_ok=True)
    return None


def _fill_cache(path: Path, data: bytes) -> None:
    remove_abandoned(path.parent)
    try:
        write_bytes(path, data)
    except OSError as error:
        log.warning("%s could not be kept in the cache (%s)", path, error)


def _reason(error: Exception) -> str:
    # webdataset reports a failed command only as text.
    if match := re.search(r"exit (-?\d+) \(read\)", str(error)):
        return f"its command ended with exit code {match[1]}"
    return first_line(error)
