"""Arrays of a retriever's file: read whole, and refused where they are not what they should be."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recsys.errors import BundleError
from recsys.retrieval.retriever import read_tensors


def written(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "weights": rng.standard_normal((7, 5)).astype(np.float32),
        "indices": rng.integers(0, 9, 11).astype(np.int32),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, folder / "a.safetensors", metadata={"made by": "a test"})
    return folder / "a.safetensors"


def test_what_was_read_does_not_follow_the_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    read, expected = read_tensors(path, {"weights": (7, None), "empty": (0, 4)}), load_file(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert read.keys() == expected.keys()
    for name, values in expected.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)


@pytest.mark.parametrize("broken", [b"", b"no header", (1 << 40).to_bytes(8, "little") + b"{}", None])
def test_a_file_that_is_none_is_refused(broken: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    if broken is not None:
        path.write_bytes(broken)
    with pytest.raises(BundleError, match=r"a\.safetensors cannot be read .*; the bundle is broken, train again"):
        read_tensors(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    save_file({"a": np.array([1.0, value])}, tmp_path / "a.safetensors")
    with pytest.raises(BundleError, match="a holds numbers that are not finite"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shapes", [{"weights": (7, 4)}, {"weights": (7,)}, {"missing": (None,)}])
def test_another_shape_than_expected_is_refused(shapes: dict[str, tuple[int | None, ...]], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"{next(iter(shapes))} should be"):
        read_tensors(written(tmp_path), shapes)
