"""The training loss of the two-tower model: softmax over all items, or over a sample of them.

What a user has seen is left out of the sum: it is never recommended, so no weight is spent on pushing it down.

`full_softmax_loss` finds the gradient while it computes the loss, a slice of queries at a time, and keeps no (Q, N)
matrix: with 10 000 items that is several times faster than autograd through `logsumexp`, and exactly the same
gradient. Source of the idea: E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024.

Shapes: Q queries, T targets, S seen pairs, D dimensions, N items, P pool of sampled items.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

SLICE = 256  # queries at a time; (SLICE, N) floats stay in cache or close to it


def full_softmax_loss(
    users: Tensor,
    item_vectors: Tensor,
    target_query: Tensor,
    target_item: Tensor,
    seen_query: Tensor,
    seen_item: Tensor,
) -> Tensor:
    """Mean over targets of -log softmax, over all items but the seen ones; a target always counts.

    users (Q, D); item_vectors (N, D); target_query, target_item (T,); seen_query, seen_item (S,)
    """
    pairs = (target_query, target_item, seen_query, seen_item)
    loss: Tensor = _FullSoftmax.apply(users, item_vectors, *pairs)  # type: ignore[no-untyped-call]
    return loss


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        target_query: Tensor,
        target_item: Tensor,
        seen_query: Tensor,
        seen_item: Tensor,
    ) -> Tensor:
        n_queries, n_targets = len(users), len(target_query)
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        buffer = users.new_empty(min(SLICE, n_queries), len(items))
        targets = _by_query(target_query, target_item, n_queries)
        seen = _by_query(seen_query, seen_item, n_queries)
        total = users.new_zeros(())
        for number, low in enumerate(range(0, n_queries, SLICE)):
            high = min(low + SLICE, n_queries)
            logits = torch.matmul(users[low:high], items.T, out=buffer[: high - low])
            query, item = targets[number]
            own = logits[query, item]
            logits[seen[number]] = float("-inf")
            logits[query, item] = own
            top = logits.amax(dim=1, keepdim=True)
            weight = logits.sub_(top).exp_()
            mass = weight.sum(dim=1, keepdim=True)
            total += (top + mass.log())[query, 0].sum() - own.sum()
            # d loss / d logits = (targets of the query x softmax - one hot of each target) / T
            weight.mul_(torch.bincount(query, minlength=high - low)[:, None] / (mass * n_targets))
            weight.index_put_((query, item), own.new_tensor(-1.0 / n_targets), accumulate=True)
            user_gradient[low:high] = weight @ items
            item_gradient.addmm_(weight.T, users[low:high])
        ctx.save_for_backward(user_gradient, item_gradient)
        return total / n_targets

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        user_gradient, item_gradient = ctx.saved_tensors
        return user_gradient * upstream, item_gradient * upstream, None, None, None, None


def _by_query(query: Tensor, item: Tensor, n_queries: int) -> list[tuple[Tensor, Tensor]]:
    """The pairs of each slice of queries, the query counted from the start of its slice."""
    order = torch.argsort(query, stable=True)
    query, item = query[order], item[order]
    edges = torch.arange(0, n_queries + SLICE, SLICE, device=query.device)
    bounds = torch.searchsorted(query, edges).tolist()
    return [(query[low:high] % SLICE, item[low:high]) for low, high in pairwise(bounds)]


def sampled_softmax_loss(
    users: Tensor,
    item_vectors: Tensor,
    target_query: Tensor,
    target_item: Tensor,
    seen_query: Tensor,
    seen_item: Tensor,
    uniform: Tensor,
) -> Tensor:
    """The same with the sum over a pool: the targets of the batch and `uniform` (P_u,) drawn row numbers, corrected by
    how often each item is expected in the pool. Source of the correction: X. Yi et al., Sampling-Bias-Corrected
    Neural Modeling for Large Corpus Item Recommendations, RecSys 2019."""
    n_items = len(item_vectors)
    pool = torch.cat([target_item, uniform])  # (P,)
    in_batch = torch.bincount(target_item, minlength=n_items).to(users.dtype)
    expected = in_batch + len(uniform) / n_items  # (N,) count of each item in the pool
    logits = users @ item_vectors[pool].T - torch.log(expected)[pool]  # (Q, P)
    logits = logits.masked_fill(_seen_in_pool(len(users), pool, seen_query, seen_item), float("-inf"))
    positive = (users[target_query] * item_vectors[target_item]).sum(dim=1)  # (T,)
    others = logits[target_query].masked_fill(pool[None, :] == target_item[:, None], float("-inf"))  # (T, P)
    return (torch.logsumexp(torch.cat([positive[:, None], others], dim=1), dim=1) - positive).mean()


def _seen_in_pool(n_queries: int, pool: Tensor, seen_query: Tensor, seen_item: Tensor) -> Tensor:
    """(Q, P) whether the query's user has seen the item; found by the pairs, so that no (Q, N) matrix is made."""
    items, column = torch.unique(pool, return_inverse=True)  # ascending, (P,)
    place = torch.searchsorted(items, seen_item).clamp(max=len(items) - 1)  # (S,)
    met = items[place] == seen_item
    seen = torch.zeros(n_queries, len(items), dtype=torch.bool, device=pool.device)
    seen[seen_query[met], place[met]] = True
    return seen[:, column]
