"""How many threads the numeric libraries may use: BLAS, OpenMP, FAISS and torch, governed here and nowhere else.

The matrices here are small (64 x 64 to 300 x 64): a second thread gains little, and on a busy machine the threads of
one product wait for each other, which made offline stages several times slower. So both tracks run on one thread; what
is worth more says so itself (LightGBM's training by `RankerSettings.threads`, the towers' by `TowerSettings.threads`).
numba needs no limit: no kernel here is parallel. Environment variables are not read: these calls overrule them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
from threadpoolctl import threadpool_limits


def single_threaded() -> None:
    """One thread for the rest of this process, in the libraries that are loaded by now: a service's worker."""
    threadpool_limits(1)
    faiss.omp_set_num_threads(1)
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(1)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """At most so many threads within; afterwards as before."""
    torch = _torch()
    before = faiss.omp_get_max_threads(), torch.get_num_threads() if torch is not None else 0
    with threadpool_limits(threads):
        faiss.omp_set_num_threads(threads)
        if torch is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before[0])
            if torch is not None:
                torch.set_num_threads(before[1])


def _torch() -> Any:
    """Torch where it is loaded: a service must start without it, which costs two seconds and 200 MB."""
    return sys.modules.get("torch")
