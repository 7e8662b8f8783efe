"""One place says how many threads the numeric libraries have."""

import subprocess
import sys

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_info

from recsys.threads import limited


def counts() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads(), faiss.omp_get_max_threads()}


def test_a_limit_holds_within_and_what_was_before_comes_back() -> None:
    with limited(2):
        assert counts() == {2}
        with limited(1):
            assert counts() == {1}
            np.linalg.inv(np.eye(64))
        assert counts() == {2}


def test_a_single_threaded_process_stays_so() -> None:
    code = """
import faiss, numpy, torch
from threadpoolctl import threadpool_info, threadpool_limits
from recsys.threads import single_threaded
threadpool_limits(2)
single_threaded()
print({p["num_threads"] for p in threadpool_info()}, torch.get_num_threads(), faiss.omp_get_max_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["{1}", "1", "1"]
