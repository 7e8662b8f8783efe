"""Arrays read by memory map. Stage: retrieval. Absent: what they mean."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recsys.errors import BundleError
from recsys.retrieval.tensor_file import map_tensors


def written(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "weights": rng.standard_normal((7, 5)).astype(np.float32),
        "indices": rng.integers(0, 9, 11).astype(np.int32),
        "head": rng.integers(-9, 9, 3),
        "settings": rng.standard_normal(3),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, folder / "a.safetensors", metadata={"made by": "a test"})
    return folder / "a.safetensors"


def test_every_array_is_what_the_library_reads(tmp_path: Path) -> None:
    path = written(tmp_path)
    mapped, read = map_tensors(path), load_file(path)
    assert mapped.keys() == read.keys()
    for name, values in read.items():
        assert mapped[name].dtype == values.dtype
        assert mapped[name].shape == values.shape
        np.testing.assert_array_equal(mapped[name], values)


def test_nothing_is_copied_and_nothing_can_be_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    mapped = map_tensors(path)["weights"]
    assert not mapped.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        mapped[0, 0] = 1.0
    with path.open("r+b") as file:  # what nobody may do to a bundle shows that the array is the file
        file.seek(path.read_bytes().index(mapped.tobytes()))
        file.write(np.float32(42.0).tobytes())
    assert mapped[0, 0] == 42.0


def test_a_file_that_was_removed_can_still_be_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    mapped, read = map_tensors(path), load_file(path)
    path.unlink()
    np.testing.assert_array_equal(mapped["weights"], read["weights"])


@pytest.mark.parametrize("broken", [b"", b"no header", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_none_is_refused(broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(broken)
    with pytest.raises(BundleError, match=r"a\.safetensors cannot be read .*; the bundle is broken, train again"):
        map_tensors(path)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BundleError, match="cannot be read"):
        map_tensors(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        map_tensors(tmp_path / "nothing.safetensors")


def test_a_type_that_no_retriever_writes_is_refused(tmp_path: Path) -> None:
    save_file({"half": np.zeros(3, np.float16)}, tmp_path / "a.safetensors")
    with pytest.raises(BundleError, match="half is F16, known are F64, F32, I64, I32; train again"):
        map_tensors(tmp_path / "a.safetensors")
