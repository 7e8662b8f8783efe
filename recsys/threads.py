"""How many threads the numeric libraries may use: BLAS, OpenMP, FAISS and torch, governed here and nowhere else.

The matrices here are small: a second thread gains little, and on a busy machine the threads of one product wait for
each other, which made offline stages several times slower. So both tracks run on one thread; what is worth more says so
itself (`RankerSettings.threads`, `TowerSettings.threads`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
from threadpoolctl import threadpool_limits


def single_threaded() -> None:
    """One thread for the rest of this process, in the libraries that are loaded by now: a service's worker."""
    threadpool_limits(1)
    _set(1, 1)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """At most so many threads within; afterwards as before."""
    torch = sys.modules.get("torch")
    before = faiss.omp_get_max_threads(), torch.get_num_threads() if torch is not None else threads
    with threadpool_limits(threads):
        _set(threads, threads)
        try:
            yield
        finally:
            _set(*before)


def _set(of_faiss: int, of_torch: int) -> None:
    """Torch only where it is loaded: a service must start without it, which costs two seconds and 200 MB."""
    faiss.omp_set_num_threads(of_faiss)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(of_torch)
