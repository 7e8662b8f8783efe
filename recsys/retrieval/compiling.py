"""Functions that are compiled to machine code when a process first calls them.

Stage: retrieval, at request time. In: a function of arrays and the types of its arguments. Out: the same function,
compiled. Absent: what is computed (`kernels`).

Compiled functions hold no interpreter lock, so that a thread that answers does not stop one that writes events. The
machine code is kept in Python's cache of the function's folder (`__pycache__`) or, where that cannot be written, in the
user's cache folder, under a name that has the retriever and the options in it: numba notes a new retriever before it
has written the code of it, and whoever read in between, or after a full disk, would run the old code.
"""

import hashlib
import inspect
import logging
from collections.abc import Callable
from functools import cached_property
from typing import Final, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
OPTIONS: Final = {"nogil": True, "error_model": "numpy"}  # x / 0 as in NumPy: a check would keep loops from vectors
log = logging.getLogger(__name__)


class Compiled(Generic[P, R]):
    """One function, compiled once for the one signature that it has. Arrays of other types are a TypeError."""

    def __init__(self, function: Callable[P, R], signature: str) -> None:
        self.function = function  # as it was written
        self.signature = signature

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.machine_code(*args, **kwargs)

    @cached_property
    def machine_code(self) -> Callable[P, R]:
        from numba import njit  # 0.3 s, which only a process that retrieves has to spend

        made_of = f"{inspect.getsource(inspect.getmodule(self.function) or self.function)}{self.signature}{OPTIONS}"
        name = self.function.__name__
        self.function.__qualname__ = f"{name}_{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
        try:
            compiled: Callable[P, R] = njit(self.signature, cache=True, **OPTIONS)(self.function)
        except Exception as error:  # no folder, a full disk, a file that a crash cut off: no reason to fail
            log.warning("the machine code of %s is not kept, and made at each start: %s", name, error or "damaged")
            compiled = njit(self.signature, **OPTIONS)(self.function)
        return compiled


def compiled(signature: str) -> Callable[[Callable[P, R]], Compiled[P, R]]:
    """Decorator. `signature` in numba's words, such as "void(float32[::1])"."""
    return lambda function: Compiled(function, signature)


def reads(kind: str, ndim: int = 1, layout: str = "C") -> str:
    """The type of an array argument that is only read, for a signature. An array that may be written passes too, and
    for the layout "A", any, one that is a part of a larger array."""
    return f"Array({kind}, {ndim}, '{layout}', readonly=True)"
