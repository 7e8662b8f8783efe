"""safetensors files of retrievers, read into memory and checked: a file that is edited later changes no answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from recsys.errors import BundleError

Shape = tuple[int | None, ...]  # None is any size


def read_tensors(path: Path, shapes: Mapping[str, Shape] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Every array of the file by name. Raises BundleError for a file that safetensors refuses, for numbers that are not
    finite, and where an array of `shapes` is missing or of another shape."""
    try:
        arrays: dict[str, npt.NDArray[Any]] = load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read ({error}); the bundle is broken, train again") from error
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise BundleError(f"{path}: {name} holds numbers that are not finite; the bundle is broken, train again")
    for name, shape in (shapes or {}).items():
        found = arrays[name].shape if name in arrays else ()
        if len(found) != len(shape) or any(w not in (None, f) for w, f in zip(shape, found, strict=True)):
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise BundleError(f"{path}: {name} should be {wanted}, found {found}; the bundle is broken, train again")
    return arrays
