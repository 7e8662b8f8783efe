"""Official archives: downloaded and verified by Pooch or taken from disk, unpacked without trusting what is in them.

A host that cannot be reached is an error here. Whether other data take the place is the caller's choice.
"""

import logging
import re
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

import pooch
import requests

from recsys.atomic_io import read_json, replacing_folder, write_json
from recsys.data.datasets import DATASETS, Dataset
from recsys.data.layouts import KNOWN_FILES, SYNTHETIC_MARK, find_layout
from recsys.errors import DataError

Report = Callable[[str], None]

ORIGIN: Final = "origin.json"  # beside the unpacked files: the archive that they came from

_TIMEOUT_S: Final = (10.0, 15.0)  # to connect; between two pieces
_TRIES: Final = 3  # a second apart, then two
_MOST_BYTES: Final = 20 << 30  # unpacked; the largest official one is about 1.2 GB
_HINT: Final = (
    "Without a network: --archive ZIP reads a downloaded archive, --data-dir FOLDER unpacked files, "
    "and --dataset synthetic makes data of its own."
)


class UnreachableError(DataError):
    """The host of the archive cannot be reached, or does not deliver it."""


def _in_words(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code}"
    if "NameResolutionError" in repr(error):  # urllib3's, wrapped twice
        return "its name cannot be resolved"
    words: dict[type[requests.RequestException], str] = {
        requests.exceptions.ProxyError: "the proxy cannot be reached, or refuses",
        requests.exceptions.SSLError: "its certificate cannot be verified",
        requests.exceptions.ConnectTimeout: f"no connection within {_TIMEOUT_S[0]:.0f} s",
        requests.exceptions.ChunkedEncodingError: "the connection broke off",
        requests.exceptions.Timeout: f"nothing came for {_TIMEOUT_S[1]:.0f} s",
    }
    return next((text for kind, text in words.items() if isinstance(error, kind)), "no connection")


def _download(url: str, folder: Path) -> Path:
    """The file at `url`, not yet verified; UnreachableError after the last try."""
    address, _, name = url.rpartition("/")
    host = pooch.create(folder, f"{address}/", registry={name: None}, retry_if_failed=_TRIES - 1)
    pooch.get_logger().setLevel(logging.WARNING)  # `report` says what a person wants to know
    try:
        return Path(
            host.fetch(name, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_S))
        )
    except requests.RequestException as error:
        raise UnreachableError(f"Could not download {url}: {_in_words(error)} ({_TRIES} tries). {_HINT}") from error


def _published_md5(url: str, folder: Path) -> str:
    """The MD5 that GroupLens publishes beside an archive, in a file `<url>.md5` of one line."""
    text = _download(f"{url}.md5", folder).read_text(encoding="utf-8", errors="replace")
    checksums = re.findall(r"\b[0-9a-fA-F]{32}\b", text[:1000])
    if len(checksums) != 1:
        raise DataError(f"{url}.md5 does not hold one MD5 checksum, so the archive cannot be verified. {_HINT}")
    return str(checksums[0]).lower()


def member_path(name: str) -> PurePosixPath:
    """Where a member lies in its archive; older tools for Windows write backslashes."""
    return PurePosixPath(name.replace("\\", "/"))


def _is_wanted(path: PurePosixPath) -> bool:
    return path.name in KNOWN_FILES or path.name == SYNTHETIC_MARK or path.name.upper().startswith("README")


def _refuse_unsafe(member: zipfile.ZipInfo, archive: Path) -> None:
    path = member_path(member.filename)
    outside = path.is_absolute() or re.match(r"[A-Za-z]:", str(path)) or ".." in path.parts
    if outside or stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "lies outside the archive's folder" if outside else "is a link or no plain file"
        raise DataError(f"{archive} is not unpacked: its member {member.filename!r} {what}. Do not trust this file.")


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files that a layout reads, and the README, into `folder`, which exists and is empty.

    Every member is checked before the first is written: one that would climb out of the folder, a link, or a sum of
    sizes beyond reason refuses the whole archive.
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
                gib = _MOST_BYTES >> 30
                raise DataError(f"{archive} would unpack to more than {gib} GiB; no MovieLens archive does.")
            for member in wanted:
                target = folder / member_path(member.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} is not a whole zip archive (cut short, or damaged): {error}.") from error
    except (RuntimeError, NotImplementedError, OSError) as error:  # a password, an unknown compression; no space
        raise DataError(f"{archive} could not be unpacked into {folder}: {error}.") from error


def _install(archive: Path, raw: Path, origin: dict[str, str]) -> None:
    with replacing_folder(raw) as beside:
        _unpack(archive, beside)
        try:
            find_layout(beside)
        except DataError as error:
            raise DataError(str(error).replace(str(beside), str(archive))) from error
        write_json(beside / ORIGIN, origin)


def fetch_archive(archive: Path, raw: Path, *, dataset: str | None = None, report: Report = lambda _: None) -> None:
    """Unpack a local archive into `raw`, replacing what is there; DataError and `raw` as it was on any failure.

    An official name in `dataset` is a claim, and the archive's MD5 must bear it out where GroupLens publishes a stable
    one. Where only the file's name says so ("ml-1m.zip"), a difference is reported.
    """
    if not archive.is_file():
        raise DataError(f"The archive {archive} {'is no file' if archive.exists() else 'does not exist'}.")
    md5 = pooch.file_hash(str(archive), "md5")
    official = DATASETS.get(dataset or archive.stem.lower())
    if official and official.md5 not in (None, md5):
        if dataset:
            raise DataError(
                f"{archive} is not the {dataset} that GroupLens publishes: its MD5 is {md5}, not {official.md5}. "
                "Download it again, or leave --dataset out to read it under its own name."
            )
        report(f"{archive.name} is not the archive that GroupLens publishes under this name (its MD5 differs).")
    _install(archive, raw, {"name": dataset or archive.stem, "url": archive.name, "md5": md5})


def fetch_official(dataset: Dataset, raw: Path, *, report: Report = lambda _: None) -> None:
    """Download, verify and unpack `dataset` into `raw`, unless it is there already; the terms go to `report`.

    After any failure `raw` is as it was, and nothing lies beside it. A file with a wrong checksum is not tried again.
    """
    origin = raw / ORIGIN
    if origin.is_file() and read_json(origin).get("url") == dataset.url:
        report(f"{dataset.name} is in {raw} already; remove that folder to download it again.")
        report(dataset.terms)
        return
    report(f"Downloading {dataset.name} (about {dataset.size_mb} MB) from {dataset.url}")
    report(dataset.terms)
    raw.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=raw.parent, prefix=".download-") as folder:
            md5 = dataset.md5 or _published_md5(dataset.url, Path(folder))
            archive = _download(dataset.url, Path(folder))
            if pooch.file_hash(str(archive), "md5") != md5:
                raise DataError(
                    f"The file downloaded from {dataset.url} is not the published one: its MD5 is not {md5}. "
                    "It was removed. Try again; if it stays so, something between here and the host alters it."
                )
            _install(archive, raw, {"name": dataset.name, "url": dataset.url, "md5": md5})
    finally:
        with suppress(OSError):  # an empty folder of the data set's name would look as if there were data
            raw.parent.rmdir()
