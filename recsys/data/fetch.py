"""Official archives: downloaded with a checksum or taken from disk, and unpacked without trusting what is in them.

Stage: data. In: a `Dataset`, or a zip file. Out: a folder with the files that a layout needs, whole or not at all.
Absent: what the files say (`layouts`, `validate`); any choice of another data set when a host cannot be reached: that
is the caller's, and must be visible.
"""

import hashlib
import itertools
import logging
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

import pooch
import requests
from tqdm import tqdm

from recsys.atomic_io import read_json, replacing_folder, write_json
from recsys.data.datasets import DATASETS, Dataset
from recsys.data.layouts import KNOWN_FILES, SYNTHETIC_MARK, find_layout
from recsys.errors import DataError

Report = Callable[[str], None]

ORIGIN: Final = "origin.json"  # beside the unpacked files: the archive that they came from

_CONNECT_S: Final = 10.0
_READ_S: Final = 15.0  # between two pieces, not for the whole
_TRIES: Final = 3
_LAST_TRY_STARTS_S: Final = 25.0  # after so long without a connection no further try: about 40 s at most in all
_BACKOFF_S: Final = 1.0  # doubled after each try
_MOST_BYTES: Final = 20 << 30  # unpacked; the largest official one is about 1.2 GB
_HINT: Final = (
    "Without a network: --archive ZIP reads a downloaded archive, --data-dir FOLDER unpacked files, "
    "and --dataset synthetic makes data of its own."
)


class UnreachableError(DataError):
    """The host of the archive cannot be reached, or does not deliver it."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        reason = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        following = error.__cause__ or error.__context__
        error = reason if isinstance(reason, BaseException) else following


def _in_words(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code}"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached, or refuses"
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return "its name cannot be resolved"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be verified"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no connection within {_CONNECT_S:.0f} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if "timed out" in str(error).lower():
        return f"nothing came for {_READ_S:.0f} s"
    return "no connection"


def _tries_for(error: requests.RequestException) -> int:
    if isinstance(error, requests.HTTPError):
        return _TRIES if error.response.status_code >= 500 else 1
    if isinstance(error, requests.exceptions.SSLError | requests.exceptions.InvalidURL):
        return 1
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return 2
    return _TRIES


def _with_retries(url: str, attempt: Callable[[], None], sleep: Callable[[float], None]) -> None:
    """Call `attempt` until it succeeds; UnreachableError with the last reason when it does not."""
    start = time.monotonic()
    for number in itertools.count(1):
        try:
            return attempt()
        except requests.RequestException as error:
            # A download that broke off had a connection: what it took so long for may be worth another try.
            broke_off = isinstance(error, requests.exceptions.ChunkedEncodingError)
            too_late = time.monotonic() - start > _LAST_TRY_STARTS_S and not broke_off
            if number >= _tries_for(error) or too_late:
                tries = f" ({number} tries)" if number > 1 else ""
                raise UnreachableError(f"Could not download {url}: {_in_words(error)}{tries}. {_HINT}") from error
            sleep(_BACKOFF_S * 2 ** (number - 1))
    return None


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Pooch logs the place of its temporary file; `report` says what a person wants to know instead."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def published_md5(url: str, sleep: Callable[[float], None] = time.sleep) -> str:
    """The MD5 that GroupLens publishes beside an archive, in a file `<url>.md5` of one line."""
    found: list[str] = []

    def attempt() -> None:
        answer = requests.get(f"{url}.md5", timeout=(_CONNECT_S, _READ_S))
        answer.raise_for_status()
        found.extend(re.findall(r"\b[0-9a-fA-F]{32}\b", answer.text[:1000]))

    _with_retries(f"{url}.md5", attempt, sleep)
    if len(found) != 1:
        raise DataError(f"{url}.md5 does not hold one MD5 checksum, so the archive cannot be verified. {_HINT}")
    return found[0].lower()


def download(
    dataset: Dataset, folder: Path, *, progress: bool | None = None, sleep: Callable[[float], None] = time.sleep
) -> tuple[Path, str]:
    """Download and verify an archive into `folder`; its path and MD5. Nothing is left there after a failure.

    `progress` None shows a bar on stderr where that is a terminal. Raises UnreachableError, or DataError where the
    archive arrived and is not the published one.
    """
    md5 = dataset.md5 or published_md5(dataset.url, sleep)
    path = folder / f"{dataset.name}.zip"

    def attempt() -> None:
        shown = sys.stderr.isatty() if progress is None else progress
        # A bar without a total cannot be asked whether it is there, which Pooch does; Pooch then sets the true one.
        with tqdm(
            desc=path.name, total=dataset.size_mb * 10**6, unit="B", unit_scale=True, file=sys.stderr, disable=not shown
        ) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=(_CONNECT_S, _READ_S))
            pooch.retrieve(dataset.url, f"md5:{md5}", fname=path.name, path=folder, downloader=downloader)

    try:
        with _quiet_pooch():
            _with_retries(dataset.url, attempt, sleep)
    except ValueError as error:  # how Pooch says that the hash differs; it has removed the file already
        raise DataError(
            f"The file downloaded from {dataset.url} is not the published one: its MD5 is not {md5}. "
            "It was removed. Try again; if it stays so, something between here and the host alters it."
        ) from error
    return path, md5


def md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def member_path(name: str) -> PurePosixPath:
    """Where a member lies in its archive; older tools for Windows write backslashes."""
    return PurePosixPath(name.replace("\\", "/"))


def _is_wanted(path: PurePosixPath) -> bool:
    return path.name in KNOWN_FILES or path.name == SYNTHETIC_MARK or path.name.upper().startswith("README")


def _refuse_unsafe(member: zipfile.ZipInfo, archive: Path) -> None:
    path = member_path(member.filename)
    outside = path.is_absolute() or re.match(r"[A-Za-z]:", str(path)) or ".." in path.parts
    kind = stat.S_IFMT(member.external_attr >> 16)
    if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "lies outside the archive's folder" if outside else "is a link or no plain file"
        raise DataError(f"{archive} is not unpacked: its member {member.filename!r} {what}. Do not trust this file.")


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of `archive` that a layout reads, and the README, into `folder`, which exists and is empty.

    Every member is checked before the first is written: one that would climb out of the folder, a link, or a sum of
    sizes beyond reason refuses the whole archive. Other files (tags, ratings split for tests) are left out.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            if not members:
                raise DataError(f"{archive} is an empty zip archive.")
            for member in members:
                _refuse_unsafe(member, archive)
            wanted = [m for m in members if not m.is_dir() and _is_wanted(member_path(m.filename))]
            if sum(member.file_size for member in wanted) > _MOST_BYTES:
                raise DataError(
                    f"{archive} would unpack to more than {_MOST_BYTES >> 30} GiB; no MovieLens archive does."
                )
            for member in wanted:
                target = folder / member_path(member.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
    except FileNotFoundError as error:
        raise DataError(f"The archive {archive} does not exist.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} is not a whole zip archive (cut short, or damaged): {error}.") from error
    except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
        raise DataError(f"{archive} cannot be unpacked: {error}.") from error
    except OSError as error:
        raise DataError(f"{archive} could not be unpacked into {folder}: {error.strerror or error}.") from error


def _install(archive: Path, raw: Path, origin: dict[str, str]) -> None:
    with replacing_folder(raw) as beside:
        unpack(archive, beside)
        try:
            find_layout(beside)
        except DataError as error:
            raise DataError(str(error).replace(str(beside), str(archive))) from error
        write_json(beside / ORIGIN, origin)


def fetch_archive(archive: Path, raw: Path, *, dataset: str | None = None, report: Report | None = None) -> None:
    """Unpack a local archive into `raw`, replacing what is there; DataError and `raw` as it was on any failure.

    An official name in `dataset` is a claim, and the archive's MD5 must bear it out where GroupLens publishes a stable
    one. Where only the file's name says so ("ml-1m.zip"), a difference is reported.
    """
    if not archive.is_file():
        raise DataError(f"The archive {archive} {'is no file' if archive.exists() else 'does not exist'}.")
    md5 = md5_of(archive)
    official = DATASETS.get(dataset or archive.stem.lower())
    if official and official.md5 not in (None, md5):
        if dataset:
            raise DataError(
                f"{archive} is not the {dataset} that GroupLens publishes: its MD5 is {md5}, not {official.md5}. "
                "Download it again, or leave --dataset out to read it under its own name."
            )
        if report:
            report(f"{archive.name} is not the archive that GroupLens publishes under this name (its MD5 differs).")
    _install(archive, raw, {"name": dataset or archive.stem, "url": archive.name, "md5": md5})


def fetch_official(
    dataset: Dataset,
    raw: Path,
    *,
    report: Report | None = None,
    progress: bool | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download, verify and unpack `dataset` into `raw`, unless it is there already; the terms go to `report`.

    After any failure `raw` is as it was, and nothing lies beside it.
    """
    tell = report or (lambda _: None)
    origin = raw / ORIGIN
    if origin.is_file() and read_json(origin).get("url") == dataset.url:
        tell(f"{dataset.name} is in {raw} already; remove that folder to download it again.")
        tell(dataset.terms)
        return
    tell(f"Downloading {dataset.name} (about {dataset.size_mb} MB) from {dataset.url}")
    tell(dataset.terms)
    raw.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=raw.parent, prefix=".download-") as folder:
            archive, md5 = download(dataset, Path(folder), progress=progress, sleep=sleep)
            _install(archive, raw, {"name": dataset.name, "url": dataset.url, "md5": md5})
    finally:
        with suppress(OSError):  # an empty folder of the data set's name would look as if there were data
            raw.parent.rmdir()
