"""An accelerator: the user tower, and retrieval as one matrix product with an exact best-of, for batches of users.

That is what such a device does best; FAISS's exact search finds the same on the CPU. Nothing else here needs one.
"""

from dataclasses import dataclass

import numpy as np
import torch

from recsys.arrays import IntArray
from recsys.columns import TWO_TOWER
from recsys.evaluation.latency import interleaved
from recsys.features.state import StateBatch
from recsys.retrieval.two_tower import TwoTower, encode_states
from serving.benchmark.bare import load_tower
from serving.benchmark.enlarge import enlarged_vectors
from serving.benchmark.in_process import Model, median

SIZES, BATCHES = (62_000, 1_000_000), (1, 64, 1_024)  # items; users at once
AT = 300  # the best, as many as a retriever is asked for


@dataclass(frozen=True)
class Batch:
    """Medians a batch. both_ms: the tower, the product with all items, the exact best AT, and the copy back."""

    items: int
    users: int
    tower_ms: float
    both_ms: float


@dataclass(frozen=True)
class Device:
    name: str
    batches: tuple[Batch, ...]


def measure(
    model: Model, user_ids: list[int], device: str, sizes: tuple[int, ...] = SIZES, batches: tuple[int, ...] = BATCHES
) -> Device | None:
    """None where there is no such device, or no two-tower retriever. Each call ends with a copy to the CPU, which waits
    for the device."""
    cuda = device.startswith("cuda")
    if (cuda and not torch.cuda.is_available()) or not (model.folder / "retrievers" / TWO_TOWER).is_dir():
        return None
    tower, states, out = load_tower(model.folder, model.recommender).to(device), model.states(*user_ids), []
    with torch.inference_mode():
        own = tower.item_vectors().cpu().numpy()
    for size in (len(own), *sizes):
        items = torch.from_numpy(enlarged_vectors(own, size)).to(device)  # (N, D)
        for users in batches:
            out.append(_batch(tower, states.rows(np.arange(users) % len(states)), items))
    return Device(torch.cuda.get_device_name() if cuda else device, tuple(out))


def _batch(tower: TwoTower, states: StateBatch, items: torch.Tensor) -> Batch:
    calls = {"tower": lambda _: encode_states(tower, states), "both": lambda _: best(tower, states, items)}
    took = interleaved(calls, n=20, warmup=3).wall_ms
    return Batch(len(items), len(states), median(took["tower"]), median(took["both"]))


def best(tower: TwoTower, states: StateBatch, items: torch.Tensor) -> IntArray:
    """(B, AT) row numbers of the items (N, D), best first."""
    users = torch.from_numpy(encode_states(tower, states)).to(items.device)  # (B, D)
    with torch.inference_mode():
        rows: IntArray = torch.topk(users @ items.T, min(AT, len(items)), dim=1).indices.cpu().numpy()
    return rows
