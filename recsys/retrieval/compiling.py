"""Functions that are compiled to machine code when a process first calls them.

Stage: retrieval, at request time. In: a function of arrays and the types of its arguments. Out: the same function,
compiled. Absent: what is computed (`kernels`).

Compiled functions hold no interpreter lock, so that a thread that answers does not stop one that reads requests. The
machine code is kept in Python's cache of this folder (`__pycache__`) or, where that cannot be written, in the user's
cache folder, and is made anew when the file, the processor or numba changes.
"""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)


class Compiled(Generic[P, R]):
    """One function, compiled once for the one signature that it has. Arguments of other types are a TypeError."""

    def __init__(self, function: Callable[P, R], signature: str) -> None:
        self.function = function  # as it was written
        self.signature = signature

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.machine_code(*args, **kwargs)

    @cached_property
    def machine_code(self) -> Callable[P, R]:
        from numba import njit  # 0.3 s, which only a process that retrieves has to spend

        options = {"nogil": True, "error_model": "numpy"}  # x / 0 as in NumPy: a check would keep loops from vectors
        try:
            compiled: Callable[P, R] = njit(self.signature, cache=True, **options)(self.function)
        except (RuntimeError, OSError) as error:  # numba's words for no folder to write to; a full disk
            log.info("the machine code of %s is not kept: %s", self.function.__name__, error)
            compiled = njit(self.signature, **options)(self.function)
        return compiled


def compiled(signature: str) -> Callable[[Callable[P, R]], Compiled[P, R]]:
    """Decorator. `signature` in numba's words, such as "void(float32[::1])"."""
    return lambda function: Compiled(function, signature)


def reads(kind: str, ndim: int = 1, layout: str = "C") -> str:
    """The type of an array argument that is only read, for a signature. An array that may be written passes too, and
    for the layout "A", any, one that is a part of a larger array."""
    return f"Array({kind}, {ndim}, '{layout}', readonly=True)"
