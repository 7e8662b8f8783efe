"""Downloads from a server on this machine, and archives that must not be unpacked."""

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from recsys.data import fetch
from recsys.data.datasets import DATASETS, Dataset, dataset_called
from recsys.data.fetch import UnreachableError, fetch_archive, fetch_official
from recsys.data.layouts import find_layout
from recsys.errors import ConfigError, DataError

from .raw_files import ML_1M_FILES, ML_100K_FILES, ML_LATEST_FILES, Host, write_files, write_zip

pytestmark = pytest.mark.usefixtures("no_sleep")


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def official(host: Host, body: bytes, *, published: bool = False) -> Dataset:
    return Dataset("ml-x", None if published else md5(body), 1, host=host.url)


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    return write_zip(tmp_path / "made.zip", {**ML_100K_FILES, "README": b"terms", "ua.base": b"left out"}).read_bytes()


def held(raw: Path) -> dict[str, bytes]:
    return {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.rglob("*") if path.is_file()}


def untouched(raw: Path) -> None:
    """`raw` holds what it held before, and nothing is left beside it."""
    assert held(raw) == {"old.txt": b"old"}
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home" / "raw", {"old.txt": b"old"})


def test_an_archive_is_downloaded_verified_and_unpacked_once(host: Host, body: bytes, raw: Path) -> None:
    host.serve("/ml-x.zip", body)
    told: list[str] = []
    fetch_official(official(host, body), raw, report=told.append)
    found = held(raw)
    assert json.loads(found.pop("origin.json")) == {"name": "ml-x", "url": f"{host.url}/ml-x.zip", "md5": md5(body)}
    assert found == {f"ml-x/{name}": content for name, content in {**ML_100K_FILES, "README": b"terms"}.items()}
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    fetch_official(official(host, body), raw, report=told.append)
    assert host.asked == ["/ml-x.zip"]
    assert told[0] == f"Downloading ml-x (about 1 MB) from {host.url}/ml-x.zip"
    assert "is in" in told[2]
    assert "doi.org/10.1145/2827872" in told[1] == told[3], "the terms"


@pytest.mark.parametrize("line", ["MD5 (ml-x.zip) = {}\n", "{}  ml-x.zip\n"])
def test_the_published_checksum_is_read_beside_the_archive(host: Host, body: bytes, raw: Path, line: str) -> None:
    host.serve("/ml-x.zip", body)
    host.serve("/ml-x.zip.md5", line.format(md5(body).upper()).encode())
    fetch_official(official(host, body, published=True), raw)
    assert host.asked == ["/ml-x.zip.md5", "/ml-x.zip"]
    assert json.loads((raw / "origin.json").read_text())["md5"] == md5(body)


def test_no_checksum_published(host: Host, body: bytes, raw: Path) -> None:
    host.serve("/ml-x.zip.md5", b"<html>moved</html>")
    with pytest.raises(DataError, match="does not hold one MD5 checksum"):
        fetch_official(official(host, body, published=True), raw)
    untouched(raw)


def test_a_file_with_a_wrong_checksum_is_downloaded_once(host: Host, body: bytes, raw: Path) -> None:
    host.serve("/ml-x.zip", body + b"!")
    with pytest.raises(DataError, match="is not the published one") as caught:
        fetch_official(official(host, body), raw)
    assert not isinstance(caught.value, UnreachableError)
    assert host.asked == ["/ml-x.zip"]
    untouched(raw)


def test_a_download_that_breaks_off_is_tried_three_times(host: Host, body: bytes, raw: Path) -> None:
    host.serve("/ml-x.zip", body, sent=100)
    with pytest.raises(UnreachableError, match=r"the connection broke off \(3 tries\).*--archive"):
        fetch_official(official(host, body), raw)
    assert len(host.asked) == 3
    untouched(raw)


def test_a_failed_first_download_leaves_no_folder(host: Host, body: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"the server answered 404 .*Without a network"):
        fetch_official(official(host, body), tmp_path / "home" / "ml-x" / "raw")
    assert not list((tmp_path / "home").iterdir())


def test_a_busy_server_is_asked_again(host: Host, body: bytes, raw: Path, no_sleep: list[float]) -> None:
    host.serve("/ml-x.zip", body)
    host.failures_first = 2
    fetch_official(official(host, body), raw)
    assert no_sleep == [1, 2]
    assert (raw / "ml-x" / "u.data").is_file()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.ConnectionError("refused"), r"no connection \(3 tries\).*--archive.*--data-dir.*--dataset synth"),
        (requests.ConnectionError("NameResolutionError('no such host')"), "its name cannot be resolved"),
        (requests.exceptions.SSLError("bad"), "certificate"),
        (requests.exceptions.ProxyError("no"), "the proxy cannot be reached, or refuses"),
        (requests.exceptions.ConnectTimeout("slow"), "no connection within 10 s"),
        (requests.exceptions.ReadTimeout("Read timed out."), "nothing came for 15 s"),
    ],
)
def test_a_failure_is_told_in_words(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, raw: Path) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(requests, "get", fails)
    with pytest.raises(UnreachableError, match=words):
        fetch_official(DATASETS["ml-1m"], raw)
    untouched(raw)


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_local_archive(tmp_path: Path, raw: Path, separator: str) -> None:
    files = {f"ml{separator}{name}": content for name, content in ML_LATEST_FILES.items()}
    fetch_archive(write_zip(tmp_path / "mine.zip", files, inside=""), raw)
    assert set(held(raw)) == {"origin.json", "ml/ratings.csv", "ml/movies.csv"}
    assert find_layout(raw).ratings.read_bytes() == ML_LATEST_FILES["ratings.csv"]


def test_an_archive_under_an_official_name_must_be_that_one(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "ml-1m.zip", ML_1M_FILES)
    with pytest.raises(DataError, match=r"is not the ml-1m that GroupLens publishes.*leave --dataset out"):
        fetch_archive(path, raw, dataset="ml-1m")
    untouched(raw)
    told: list[str] = []
    fetch_archive(path, raw, report=told.append)
    assert told == ["ml-1m.zip is not the archive that GroupLens publishes under this name (its MD5 differs)."]
    monkeypatch.setitem(DATASETS, "ml-1m", Dataset("ml-1m", md5(path.read_bytes()), 1))
    fetch_archive(path, raw, dataset="ml-1m", report=told.append)
    assert len(told) == 1


def add_member(path: Path, name: str, *, link: bool = False) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = (stat.S_IFLNK | 0o777) << 16 if link else 0
        archive.writestr(member, "/etc/passwd")
    return path


@pytest.mark.parametrize("name", ["../u.user", "a/../../u.user", "/tmp/u.user", "C:\\u.user", "..\\u.user", "link"])
def test_a_member_that_climbs_out_and_a_link_are_refused(tmp_path: Path, raw: Path, name: str) -> None:
    words = "is a link or no plain file" if name == "link" else "lies outside the archive's folder"
    path = add_member(write_zip(tmp_path / "a.zip", ML_100K_FILES), name, link=name == "link")
    with pytest.raises(DataError, match=words):
        fetch_archive(path, raw)
    untouched(raw)


def damaged(body: bytes) -> bytes:
    at = body.index(b"u.data") + 12
    return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


def locked(body: bytes) -> bytes:
    """The flag "encrypted" in every header."""
    changed = bytearray(body)
    for mark, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = -1
        while (at := changed.find(mark, at + 1)) >= 0:
            changed[at + offset] |= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body[: len(body) // 2], "not a whole zip archive"),
        (damaged, "not a whole zip archive"),
        (lambda _: b"", "not a whole zip archive"),
        (lambda _: b"PK\5\6" + bytes(18), "is an empty zip archive"),
        (locked, "could not be unpacked into .*password"),
    ],
    ids=["cut short", "damaged", "no bytes", "empty", "locked"],
)
def test_archives_that_are_none(
    tmp_path: Path, raw: Path, body: bytes, change: Callable[[bytes], bytes], words: str
) -> None:
    (tmp_path / "a.zip").write_bytes(change(body))
    with pytest.raises(DataError, match=words):
        fetch_archive(tmp_path / "a.zip", raw)
    untouched(raw)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"poem.txt": b"rose"}, r"a\.zip holds no MovieLens data"),
        ({"u.data": b""}, r"u\.item is missing in .*a\.zip/ml-x"),
        ({"u.user/u.genre": b"", "u.user": b""}, "could not be unpacked into"),  # a folder and a file of one name
        ({**ML_1M_FILES, "movies.dat": bytes(2000)}, "would unpack to more than"),
    ],
)
def test_archives_of_something_else(
    tmp_path: Path, raw: Path, files: dict[str, bytes], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_MOST_BYTES", 1000)
    with pytest.raises(DataError, match=words):
        fetch_archive(write_zip(tmp_path / "a.zip", files), raw)
    untouched(raw)


def test_no_archive(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DataError, match=r"c\.zip does not exist"):
        fetch_archive(tmp_path / "c.zip", raw)
    with pytest.raises(DataError, match="is no file"):
        fetch_archive(tmp_path, raw)
    untouched(raw)


def test_official_sets_have_a_checksum_or_publish_one_and_terms() -> None:
    assert " ".join(DATASETS) == "ml-100k ml-1m ml-10m ml-20m ml-25m ml-32m ml-latest-small ml-latest"
    for name, dataset in DATASETS.items():
        assert dataset.url == f"https://files.grouplens.org/datasets/movielens/{name}.zip"
        assert (dataset.md5 is None) == name.startswith("ml-latest")
        assert ("do not pass it on" in dataset.terms) == (name in ("ml-100k", "ml-1m", "ml-10m", "ml-20m"))
        assert "10.1145/2827872" in dataset.terms
    with pytest.raises(ConfigError, match=r"'ml-2m'.*ml-100k, ml-1m"):
        dataset_called("ml-2m")
