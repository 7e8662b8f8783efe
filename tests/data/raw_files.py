"""Small files in each official layout, made up line by line, and what a web server answers."""

import csv
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path


def flags(*ones: int) -> str:
    return "|".join("1" if i in ones else "0" for i in range(19))


ML_100K_FILES = {
    "u.data": b"1\t1\t5\t880000002\n2\t3\t1\t880000001\n1\t2\t3\t880000000\n",
    "u.item": (
        f"1|Caf\xe9 of Days (1995)|01-Jan-1995||http://example.org/1|{flags(1, 5)}\n"
        f"2|unknown||||{flags(0)}\n"
        f"3|Without a Year|02-Feb-1997|||{flags(3, 4)}\n"
    ).encode("latin-1"),
    "u.user": b"1|24|M|technician|85711\n2|53|F|other|94043\n9|33|F|writer|00000\n",
}
ML_1M_FILES = {
    "ratings.dat": b"1::10::3.5::978300000\n2::11::4::978300001\n",
    "movies.dat": (
        "10::Sm\xf6rg\xe5s (1990) (V)::Comedy|Sci-Fi\n11::Foo:: Bar::Baz (2001)::(no genres listed)\n12::Plain::Drama\n"
    ).encode("latin-1"),
    "users.dat": b"1::F::1::10::48067\n2::M::56::0::70072\n",
}
ML_LATEST_FILES = {
    "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,7,0.5,1000000000\r\n3,8,5.0,1000000000\r\n",
    "movies.csv": (
        "movieId,title,genres\r\n"
        '7,"Ghost, The ""Big"" One (2006–2007) ",Drama|Film-Noir\r\n'
        "8,Babylon,(no genres listed)\r\n"
        "9,Never Rated (2009– ),Comedy\r\n"
    ).encode(),
}
LAYOUTS = {"ml-100k": ML_100K_FILES, "ml-1m": ML_1M_FILES, "ml-latest": ML_LATEST_FILES}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes], inside: str = "ml-x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{inside}/{name}" if inside else name, content)
    return path


@dataclass
class Host:
    """What the server answers: path -> (status, body, bytes it really sends). `asked` lists the requests."""

    url: str = ""
    answers: dict[str, tuple[int, bytes, int | None]] = field(default_factory=dict)
    failures_first: int = 0
    asked: list[str] = field(default_factory=list)

    def serve(self, path: str, body: bytes, status: int = 200, sent: int | None = None) -> None:
        self.answers[path] = (status, body, sent)


def faults(quarantine: io.StringIO) -> list[tuple[str, int, str]]:
    """File, line and reason of every bad row, in the order of files and lines."""
    rows = [
        (row["file"], int(row["line"]), row["reason"]) for row in csv.DictReader(io.StringIO(quarantine.getvalue()))
    ]
    return sorted(rows)
