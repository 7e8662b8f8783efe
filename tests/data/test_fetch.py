"""Downloads from a server on this machine, and archives that must not be unpacked."""

import hashlib
import json
import socket
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from recsys.data import fetch
from recsys.data.datasets import DATASETS, Dataset
from recsys.data.fetch import UnreachableError, fetch_archive, fetch_official, published_md5
from recsys.data.layouts import find_layout
from recsys.errors import DataError

from .raw_files import ML_1M_FILES, ML_100K_FILES, ML_LATEST_FILES, Host, write_files, write_zip

Sleep = Callable[[float], None]


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def official(host: Host, body: bytes, *, published: bool = False) -> Dataset:
    return Dataset("ml-x", f"{host.url}/ml-x.zip", None if published else md5(body), "ml-100k", 1, False)


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


def test_download_verifies_unpacks_and_shows_the_terms(host: Host, body: bytes, raw: Path, no_sleep: Sleep) -> None:
    host.serve("/ml-x.zip", body)
    told: list[str] = []
    fetch_official(official(host, body), raw, report=told.append, progress=True, sleep=no_sleep)
    found = held(raw)
    assert json.loads(found.pop("origin.json")) == {"name": "ml-x", "url": f"{host.url}/ml-x.zip", "md5": md5(body)}
    assert found == {f"ml-x/{name}": content for name, content in {**ML_100K_FILES, "README": b"terms"}.items()}
    assert told[0] == f"Downloading ml-x (about 1 MB) from {host.url}/ml-x.zip"
    assert "doi.org/10.1145/2827872" in told[1]
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


def test_a_second_time_nothing_is_downloaded(host: Host, body: bytes, raw: Path) -> None:
    host.serve("/ml-x.zip", body)
    fetch_official(official(host, body), raw, progress=False)
    told: list[str] = []
    fetch_official(official(host, body), raw, report=told.append)
    assert host.asked == ["/ml-x.zip"]
    assert "already" in told[0]
    assert "10.1145" in told[1]


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


def test_a_wrong_checksum(host: Host, body: bytes, raw: Path) -> None:
    host.serve("/ml-x.zip", body + b"!")
    with pytest.raises(DataError, match="is not the published one") as caught:
        fetch_official(official(host, body), raw)
    assert not isinstance(caught.value, UnreachableError)
    untouched(raw)


def test_a_download_that_breaks_off_is_tried_three_times(host: Host, body: bytes, raw: Path, no_sleep: Sleep) -> None:
    host.serve("/ml-x.zip", body, sent=100)
    with pytest.raises(UnreachableError, match=r"the connection broke off \(3 tries\).*--archive"):
        fetch_official(official(host, body), raw, sleep=no_sleep)
    assert len(host.asked) == 3
    untouched(raw)


def test_a_failed_first_download_leaves_no_folder(host: Host, body: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        fetch_official(official(host, body), tmp_path / "home" / "ml-x" / "raw")
    assert not list((tmp_path / "home").iterdir())


def test_a_busy_server_is_asked_again(host: Host, body: bytes, raw: Path) -> None:
    host.serve("/ml-x.zip", body)
    host.failures_first = 2
    waits: list[float] = []
    fetch_official(official(host, body), raw, sleep=waits.append)
    assert waits == [1.0, 2.0]
    assert (raw / "ml-x" / "u.data").is_file()


def test_what_is_not_there_is_not_asked_for_again(host: Host, body: bytes, raw: Path) -> None:
    with pytest.raises(UnreachableError, match=r"the server answered 404\. Without a network"):
        fetch_official(official(host, body), raw)
    assert len(host.asked) == 1
    untouched(raw)


def test_an_unreachable_host_fails_fast_and_says_what_to_do(raw: Path) -> None:
    with socket.socket() as unused:  # bound, not listening: every connection is refused
        unused.bind(("127.0.0.1", 0))
        dataset = Dataset("ml-x", f"http://127.0.0.1:{unused.getsockname()[1]}/ml-x.zip", "0" * 32, "ml-100k", 1, False)
        start = time.monotonic()
        with pytest.raises(
            UnreachableError, match=r"no connection \(3 tries\).*--archive.*--data-dir.*--dataset synth"
        ):
            fetch_official(dataset, raw)
    assert time.monotonic() - start < 10
    untouched(raw)


def test_a_name_that_does_not_resolve_is_tried_twice(
    raw: Path, monkeypatch: pytest.MonkeyPatch, no_sleep: Sleep
) -> None:
    asked: list[object] = []

    def no_such_name(*args: object, **_: object) -> None:
        asked.append(args[0])
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    dataset = Dataset("ml-x", "http://nowhere.invalid/ml-x.zip", "0" * 32, "ml-100k", 1, False)
    with pytest.raises(UnreachableError, match=r"its name cannot be resolved \(2 tries\)"):
        fetch_official(dataset, raw, sleep=no_sleep)
    assert asked == ["nowhere.invalid"] * 2
    untouched(raw)


@pytest.mark.parametrize(
    ("error", "tries", "words"),
    [
        (requests.exceptions.SSLError("bad"), 1, "certificate"),
        (requests.exceptions.ProxyError("no"), 3, "the proxy cannot be reached, or refuses"),
        (requests.exceptions.ConnectTimeout("slow"), 3, "no connection within 10 s"),
        (requests.exceptions.ReadTimeout("Read timed out."), 3, "nothing came for 15 s"),
    ],
)
def test_other_failures_in_words(
    monkeypatch: pytest.MonkeyPatch, no_sleep: Sleep, error: Exception, tries: int, words: str
) -> None:
    asked: list[str] = []

    def fails(url: str, **_: object) -> None:
        asked.append(url)
        raise error

    monkeypatch.setattr(requests, "get", fails)
    with pytest.raises(UnreachableError, match=words):
        published_md5("http://host.invalid/a.zip", no_sleep)
    assert len(asked) == tries


def test_no_further_try_starts_late(monkeypatch: pytest.MonkeyPatch, no_sleep: Sleep) -> None:
    asked: list[str] = []

    def fails(url: str, **_: object) -> None:
        asked.append(url)
        raise requests.exceptions.ConnectTimeout

    monkeypatch.setattr(requests, "get", fails)
    monkeypatch.setattr(fetch, "_LAST_TRY_STARTS_S", -1.0)
    with pytest.raises(UnreachableError):
        published_md5("http://host.invalid/a.zip", no_sleep)
    assert len(asked) == 1


def test_a_local_archive(tmp_path: Path, raw: Path) -> None:
    fetch_archive(write_zip(tmp_path / "mine.zip", ML_LATEST_FILES, inside=""), raw)
    assert set(held(raw)) == {"origin.json", "ratings.csv", "movies.csv"}


def test_an_archive_with_backslashes_in_its_names(tmp_path: Path, raw: Path) -> None:
    files = {f"ml\\{name}": content for name, content in ML_LATEST_FILES.items()}
    fetch_archive(write_zip(tmp_path / "windows.zip", files, inside=""), raw)
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
    true = Dataset("ml-1m", "https://example.org/ml-1m.zip", fetch.md5_of(path), "ml-1m", 1, False)
    monkeypatch.setitem(DATASETS, "ml-1m", true)
    fetch_archive(path, raw, dataset="ml-1m", report=told.append)
    assert len(told) == 1


def link(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")


@pytest.mark.parametrize("name", ["../u.user", "a/../../u.user", "/tmp/u.user", "C:\\u.user", "..\\u.user"])
def test_a_member_that_climbs_out(tmp_path: Path, raw: Path, name: str) -> None:
    path = write_zip(tmp_path / "a.zip", ML_100K_FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(DataError, match=r"lies outside the archive's folder"):
        fetch_archive(path, raw)
    untouched(raw)


def test_a_link(tmp_path: Path, raw: Path) -> None:
    link(path := write_zip(tmp_path / "a.zip", ML_100K_FILES), "ml-x/u.info")
    with pytest.raises(DataError, match="is a link or no plain file"):
        fetch_archive(path, raw)
    untouched(raw)


def damaged(body: bytes) -> bytes:
    at = body.index(b"u.data") + 12
    return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body[: len(body) // 2], "not a whole zip archive"),
        (damaged, "not a whole zip archive"),
        (lambda _: b"", "not a whole zip archive"),
        (lambda _: b"PK\5\6" + bytes(18), "is an empty zip archive"),
    ],
    ids=["cut short", "damaged", "no bytes", "empty"],
)
def test_archives_that_are_none(
    tmp_path: Path, raw: Path, body: bytes, change: Callable[[bytes], bytes], words: str
) -> None:
    (tmp_path / "a.zip").write_bytes(change(body))
    with pytest.raises(DataError, match=words):
        fetch_archive(tmp_path / "a.zip", raw)
    untouched(raw)


def test_an_archive_without_movielens_files_or_with_half_of_them(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DataError, match=r"a\.zip holds no MovieLens data"):
        fetch_archive(write_zip(tmp_path / "a.zip", {"poem.txt": b"rose"}), raw)
    with pytest.raises(DataError, match=r"u\.item is missing in .*b\.zip/ml-x"):
        fetch_archive(write_zip(tmp_path / "b.zip", {"u.data": b""}), raw)
    with pytest.raises(DataError, match=r"c\.zip does not exist"):
        fetch_archive(tmp_path / "c.zip", raw)
    with pytest.raises(DataError, match="is no file"):
        fetch_archive(tmp_path, raw)
    untouched(raw)


def test_an_archive_that_is_locked_or_far_too_large_or_does_not_fit(
    tmp_path: Path, raw: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = bytearray(body)
    for mark, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # the flag "encrypted" in every header
        at = -1
        while (at := locked.find(mark, at + 1)) >= 0:
            locked[at + offset] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(locked))
    with pytest.raises(DataError, match=r"cannot be unpacked: .*password"):
        fetch_archive(tmp_path / "a.zip", raw)
    twice = {"u.data": b"", "u.item": b"", "u.user/u.genre": b"", "u.user": b""}  # a folder and a file of one name
    with pytest.raises(DataError, match="could not be unpacked into"):
        fetch_archive(write_zip(tmp_path / "b.zip", twice), raw)
    monkeypatch.setattr(fetch, "_MOST_BYTES", 10)
    with pytest.raises(DataError, match="would unpack to more than"):
        fetch_archive(tmp_path / "made.zip", raw)
    untouched(raw)


def test_unpack_says_when_the_archive_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        fetch.unpack(tmp_path / "gone.zip", tmp_path)
