"""safetensors files read by memory map: no copy, and workers that open the same file share its memory.

Stage: retrieval, both tracks. In: a file. Out: its arrays, read-only views of the mapped pages. Absent: writing, which
the safetensors library does; its own reader copies every array into the memory of the process.

Layout: eight bytes of length, a JSON header with dtype, shape and offsets of every tensor, the tensors.
Source: https://github.com/huggingface/safetensors#format.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from recsys.errors import BundleError

_DTYPES: Final = {"F64": np.float64, "F32": np.float32, "I64": np.int64, "I32": np.int32}  # what the sources write


def map_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of the file by name. The file must not be changed in place while they are in use; replacing or
    removing it is safe. Raises BundleError for a file that safetensors refuses, or of other types than sources write.
    """
    try:
        with safe_open(path, framework="np"):
            pass  # the library's own checks: sizes, overlaps, a header that is no header
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read ({error}); the bundle is broken, train again") from error
    pages = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    start = 8 + int.from_bytes(pages[:8].tobytes(), "little")
    header = json.loads(pages[8:start].tobytes())
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise BundleError(f"{path}: {name} is {entry['dtype']}, known are {', '.join(_DTYPES)}; train again")
        low, high = (start + offset for offset in entry["data_offsets"])
        arrays[name] = pages[low:high].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays
