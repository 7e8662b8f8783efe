"""Proof that a folder holds no pickle."""

import io
import pickletools
import warnings
import zipfile
from pathlib import Path

SAFE = {".safetensors", ".faiss", ".txt", ".json", ".parquet"}


def is_pickle(data: bytes) -> bool:
    """True where the bytes can be read as a whole pickle, of any protocol, or as a zip that holds one (torch.save)."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        return True
    try:
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in bytes that only look like text
            opcodes = [op.name for op, _, _ in pickletools.genops(data)]
    except (ValueError, EOFError, UnicodeDecodeError, OverflowError, IndexError):
        return False
    return bool(opcodes) and opcodes[-1] == "STOP"


def assert_no_pickle(folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert path.suffix in SAFE, path
        assert not is_pickle(path.read_bytes()), path
        if path.suffix != ".safetensors":  # which begins with a length: 128 where few arrays are stored
            assert not path.read_bytes().startswith(b"\x80"), path
