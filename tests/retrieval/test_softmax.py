"""The two losses against their formulas written with loops, and the gradient against autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from recsys.retrieval import softmax
from recsys.retrieval.softmax import full_softmax_loss, sampled_softmax_loss

Pairs = tuple[np.ndarray, np.ndarray]
NOTHING_SEEN: Pairs = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
SEEN: Pairs = (np.array([0, 0, 2, 3, 3]), np.array([1, 4, 8, 2, 6]))  # query 3 has seen item 2, one of its targets


def loss_arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    users, items = rng.standard_normal((4, 5)), rng.standard_normal((9, 5))
    return users, items, np.array([0, 0, 1, 2, 3, 3]), np.array([2, 7, 2, 0, 5, 2])


def torch_loss(
    users: np.ndarray,
    items: np.ndarray,
    query: np.ndarray,
    target: np.ndarray,
    uniform: np.ndarray | None,
    seen: Pairs = NOTHING_SEEN,
) -> float:
    arrays = [torch.from_numpy(a) for a in (users, items, query, target, *seen)]
    if uniform is None:
        return float(full_softmax_loss(*arrays))
    return float(sampled_softmax_loss(*arrays, torch.from_numpy(uniform)))


def full_loss(
    users: np.ndarray, items: np.ndarray, query: np.ndarray, target: np.ndarray, seen: Pairs = NOTHING_SEEN
) -> float:
    total = 0.0
    targets_of = {q: set(target[query == q]) for q in query}
    for q, t in zip(query, target, strict=True):
        left_out = set(seen[1][seen[0] == q]) - targets_of[q]
        logits = items @ users[q]
        total -= np.log(np.exp(logits[t]) / sum(np.exp(logits[j]) for j in range(len(items)) if j not in left_out))
    return total / len(target)


def sampled_loss(
    users: np.ndarray,
    items: np.ndarray,
    query: np.ndarray,
    target: np.ndarray,
    uniform: np.ndarray,
    seen: Pairs = NOTHING_SEEN,
) -> float:
    """The formula with loops: pool = targets and draws; weight 1 / expected count; equals of the target and what was
    seen left out."""
    pool = [*target, *uniform]
    expected = [list(target).count(j) + len(uniform) / len(items) for j in range(len(items))]
    total = 0.0
    for q, t in zip(query, target, strict=True):
        positive = np.exp(items[t] @ users[q])
        left_out = {t, *seen[1][seen[0] == q]}
        others = sum(np.exp(items[j] @ users[q]) / expected[j] for j in pool if j not in left_out)
        total -= np.log(positive / (positive + others))
    return total / len(target)


@pytest.mark.parametrize("drawn", [1, 4, 30])
def test_the_sampled_loss_is_the_formula_with_logq_and_without_accidental_hits(drawn: int) -> None:
    """What was seen and is no target of the user counts as little as an accidental hit."""
    arrays = loss_arrays(drawn)
    uniform = np.random.default_rng(drawn).integers(0, 9, drawn)
    uniform[0] = 2  # an accidental hit of three targets
    assert torch_loss(*arrays, uniform, SEEN) == pytest.approx(sampled_loss(*arrays, uniform, SEEN), rel=1e-10)


def test_what_was_seen_is_left_out_and_a_target_never_is() -> None:
    arrays = loss_arrays()
    assert torch_loss(*arrays, None, SEEN) == pytest.approx(full_loss(*arrays, SEEN), rel=1e-10)
    assert torch_loss(*arrays, None, SEEN) < torch_loss(*arrays, None)


@pytest.mark.parametrize("slice_size", [1, 3, 256])
def test_the_gradient_is_that_of_autograd(slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "SLICE", slice_size)
    users, items, query, target = (torch.from_numpy(a) for a in loss_arrays(3))
    seen = tuple(torch.from_numpy(a) for a in SEEN)
    ours, theirs = [(users.clone().requires_grad_(), items.clone().requires_grad_()) for _ in range(2)]
    (3 * full_softmax_loss(*ours, query, target, *seen)).backward()
    left_out = torch.zeros(len(users), len(items), dtype=torch.bool)
    left_out[seen] = True
    left_out[query, target] = False
    logits = (theirs[0] @ theirs[1].T).masked_fill(left_out, float("-inf"))
    (3 * torch.nn.functional.cross_entropy(logits[query], target)).backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-10, atol=1e-12)


def test_the_sampled_loss_makes_no_matrix_of_queries_and_items() -> None:
    n_queries, n_items, drawn = 50, 10_000, 30
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for made in result if isinstance(result, tuple) else (result,):
                largest = max(largest, made.numel() if isinstance(made, torch.Tensor) else 0)
            return result

    each = torch.arange(n_queries)
    users, items = torch.ones(n_queries, 1), torch.ones(n_items, 1)
    with Watch():
        sampled_softmax_loss(users, items, each, each, each, each + 1, torch.arange(drawn))
    assert n_queries * (n_queries + drawn) <= largest <= n_items
