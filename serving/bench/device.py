"""An accelerator: the user tower, retrieval by matrix product, and batch scoring on it, beside the CPU.

Stage: serving (benchmark). In: the champion's bundle and users' states. Out: milliseconds a batch and users a second by
device. Absent: ranking; trees run on the CPU everywhere here. No accelerator is needed by anything else in the system.

On an accelerator retrieval is one product of the users' vectors with all items' and `torch.topk`, exact, because a
matrix product is what such a device does best; FAISS's exact search is the same on the CPU.

Shapes: B users, N items, D dimensions.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from recsys.arrays import FloatArray
from recsys.atomic_io import read_json
from recsys.bundle import Bundle
from recsys.columns import TWO_TOWER
from recsys.feature_store import FeatureStore
from recsys.features.state import StateBatch, UserState, state_batch
from recsys.retrieval.tower_inputs import TowerShape
from recsys.retrieval.two_tower import TwoTower, encode_states
from serving.bench.enlarge import grown_vectors

BATCHES = (1, 64, 1_024)
SIZES = (62_000, 1_000_000)
ON_CPU = {"batches": (1, 64), "sizes": (62_000,)}  # a product of 1,024 users with a million items takes seconds there
AT = 300
N, WARM_UP = 20, 3
NO_CUDA = "no CUDA device"


def measure(
    bundle: Bundle,
    store: FeatureStore,
    user_ids: list[int],
    device: str,
    *,
    now: int,
    sizes: tuple[int, ...] | None = None,
    batches: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """SIZES and BATCHES, or ON_CPU, unless told otherwise. {"device", "message"} where there is no such device; that is
    no error."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return {"device": device, "message": NO_CUDA}
    folder = bundle.folder / "retrievers" / TWO_TOWER
    if not folder.is_dir():
        return {"device": device, "message": "the bundle has no two-tower retriever"}
    place = torch.device(device)
    if place.type == "cpu":
        sizes, batches = sizes or ON_CPU["sizes"], batches or ON_CPU["batches"]
    tower = load_tower(bundle).to(place)
    known = [
        stored or (UserState(u), np.empty(0, dtype=np.int64))
        for u, stored in zip(user_ids, store.online_states(user_ids), strict=True)
    ]
    states = state_batch(bundle.recommender.catalogue, [s for s, _ in known], [seen for _, seen in known], now)
    vectors = tower_vectors(tower)
    found: dict[str, Any] = {"device": device, "name": _name(place), "at": AT, "batches": []}
    worlds = {len(vectors): vectors}
    for size in sizes or SIZES:
        if size > len(vectors):
            like = np.random.default_rng(size).integers(0, len(vectors), size - len(vectors))
            worlds[size] = grown_vectors(vectors, like)
    for size, world in worlds.items():
        items = torch.from_numpy(world).to(place)  # (N, D)
        for batch in batches or BATCHES:
            found["batches"].append({"items": size, "users": batch, **_one(tower, states, items, batch, place)})
    found["same_as_cpu"] = same_as_cpu(tower, bundle, states, vectors, place)
    return found


def load_tower(bundle: Bundle) -> TwoTower:
    """The torch model of a bundle, in eval mode, on the CPU."""
    folder = bundle.folder / "retrievers" / TWO_TOWER
    stored = read_json(folder / "towers.json")
    shape = TowerShape(**{**stored, "profile_sizes": tuple(stored["profile_sizes"])})
    tower = TwoTower(shape, bundle.recommender.catalogue)
    tower.load_state_dict(load_file(folder / "towers.safetensors"))
    return tower.eval()


def tower_vectors(tower: TwoTower) -> FloatArray:
    """(N, D)"""
    with torch.inference_mode():
        return np.ascontiguousarray(tower.item_vectors().cpu().numpy())


def _one(tower: TwoTower, states: StateBatch, items: torch.Tensor, batch: int, place: torch.device) -> dict[str, float]:
    rows = states.rows(np.arange(batch) % len(states))
    users = torch.from_numpy(encode_states(tower, rows)).to(place)
    at = min(AT, len(items))

    def best(queries: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.topk(queries @ items.T, at, dim=1).indices

    tower_ms = _median_ms(lambda: encode_states(tower, rows), place)
    retrieval_ms = _median_ms(lambda: best(users), place)
    scoring_ms = _median_ms(lambda: best(torch.from_numpy(encode_states(tower, rows)).to(place)).cpu(), place)
    return {
        "tower_ms": tower_ms,
        "retrieval_ms": retrieval_ms,
        "scoring_ms": scoring_ms,
        "users_per_s": batch / scoring_ms * 1e3,
    }


def _median_ms(call: Callable[[], object], place: torch.device) -> float:
    """The device works on its own time: both ends wait for it."""
    took = []
    for i in range(WARM_UP + N):
        _wait(place)
        started = time.perf_counter()
        call()
        _wait(place)
        if i >= WARM_UP:
            took.append((time.perf_counter() - started) * 1e3)
    return float(np.median(took))


def same_as_cpu(tower: TwoTower, bundle: Bundle, states: StateBatch, vectors: FloatArray, place: torch.device) -> float:
    """Share of the CPU's exact top AT that the device finds too, mean over the users: 1 but for rounding."""
    at = min(AT, len(vectors))
    there = torch.from_numpy(encode_states(tower, states)).to(place) @ torch.from_numpy(vectors).to(place).T
    here = encode_states(load_tower(bundle), states) @ vectors.T
    found = torch.topk(there, at, dim=1).indices.cpu().numpy()
    exact = np.argsort(-here, axis=1, kind="stable")[:, :at]
    return float(np.mean([len(np.intersect1d(a, b)) / at for a, b in zip(exact, found, strict=True)]))


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def _name(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
