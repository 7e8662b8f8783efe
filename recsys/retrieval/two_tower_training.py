"""How the two-tower model is trained: windows, softmax over unseen items, early stopping, checkpoints.

Examples are the contexts and targets inside the windows of histories (`tower_inputs`), cut anew each epoch.

What is validated and returned is the exponential moving average of the weights over the last 1 / (1 - averaging)
steps: a single step's weights are noisy on small data.

The loss (`softmax`) sums over every item with `negatives="full"`, over a sample with "sampled"; "auto" is "full" up to
FULL_SOFTMAX items.

Shapes: B states, Q queries (contexts), T targets, D dimensions.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recsys.arrays import IntArray
from recsys.atomic_io import fingerprint_value, replacing_file
from recsys.errors import ConfigError
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.state import StateBatch
from recsys.retrieval.retriever import top_k
from recsys.retrieval.softmax import full_softmax_loss, sampled_softmax_loss
from recsys.retrieval.tower_inputs import TowerShape, WindowCutter, Windows
from recsys.retrieval.two_tower import TwoTower, encode_states

FULL_SOFTMAX = 12_000  # items up to which summing over all of them is cheaper than sampling well


@dataclass(frozen=True)
class TowerSettings:
    """Settings of one training. `epochs` is the most that early stopping may use."""

    dim: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 64
    dropout: float = 0.2
    id_dropout: float = 0.1
    epochs: int = 30
    patience: int = 3
    batch_events: int = 2_560
    max_events_per_epoch: int = 400_000
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    averaging: float = 0.98
    negatives: Literal["auto", "full", "sampled"] = "auto"
    uniform_negatives: int = 2_048
    device: str = "cpu"
    threads: int = 1  # these matrices are small: a second thread gains little and, on a busy machine, loses threefold
    seed: int = 7

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ConfigError(f"two-tower: dim {self.dim} cannot be divided among {self.heads} heads")
        if self.epochs < 1 or self.batch_events < 1:
            raise ConfigError("two-tower: epochs and batch_events must be at least 1")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("two-tower: device cuda was asked for, but torch sees no GPU; use --device cpu")


@dataclass
class TrainingLog:
    """One entry an epoch: mean loss, seconds, and the validation metric where there is validation."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0  # 1-based; 0 before the first epoch


def batches_of_alike(lengths: IntArray, events: int, rng: np.random.Generator) -> list[IntArray]:
    """Rows in batches of about `events` events, windows of like length together, batches in random order.

    A batch is as wide as its longest window: mixing lengths would spend a third of the time on padding.
    """
    order = np.argsort(lengths, kind="stable")
    batch = (np.cumsum(lengths[order]) - 1) // events
    parts = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
    return [parts[i] for i in rng.permutation(len(parts)) if len(parts[i])]


def validation_ndcg(model: TwoTower, states: StateBatch, context: IntArray, target_idx: IntArray) -> float:
    """NDCG@10 of the model alone. `context` (T,) says which state each of the (T,) target items belongs to."""
    model.eval()
    with torch.inference_mode():
        items = model.item_vectors().cpu().numpy()
    gains = np.zeros(len(context))
    order = np.argsort(context, kind="stable")
    for low in range(0, len(states), 512):
        rows = slice(low, low + 512)
        batch = states.rows(rows)
        scores = encode_states(model, batch) @ items.T
        best, _ = top_k(scores, 10, batch.seen_idx)
        mine = order[np.searchsorted(context[order], low) : np.searchsorted(context[order], low + 512)]
        hit = best[context[mine] - low] == target_idx[mine, None]
        gains[mine] = (hit / np.log2(np.arange(2, 12))).sum(axis=1)
    return float(gains.mean()) if len(gains) else 0.0


class Trainer:
    """One training run that can be stopped and continued."""

    def __init__(
        self,
        catalogue: Catalogue,
        histories: Histories,
        cutoff: int,
        settings: TowerSettings,
        checkpoint: Path | None = None,
    ) -> None:
        self.settings = settings
        self.shape = TowerShape(
            n_items=len(catalogue),
            n_genres=len(catalogue.genre_names),
            n_words=len(catalogue.vocabulary),
            profile_sizes=catalogue.profile_sizes,
            dim=settings.dim,
            layers=settings.layers,
            heads=settings.heads,
            max_length=settings.max_length,
            dropout=settings.dropout,
            id_dropout=settings.id_dropout,
        )
        torch.manual_seed(settings.seed)
        self.model = TwoTower(self.shape, catalogue).to(settings.device)
        self.cutter = WindowCutter(histories, cutoff, settings.max_length)
        self.checkpoint = checkpoint
        self.log = TrainingLog()
        self._identity = fingerprint_value([asdict(settings), asdict(self.shape), cutoff, self.cutter.fingerprint])
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
        )
        average = get_ema_multi_avg_fn(settings.averaging)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.model, multi_avg_fn=average)
        self._full = settings.negatives == "full" or (settings.negatives == "auto" and len(catalogue) <= FULL_SOFTMAX)

    def fit(
        self,
        validate: Callable[[TwoTower], float] | None = None,
        *,
        epochs: int | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> TwoTower:
        """Train for `epochs` (default: the settings'). With `validate` (higher is better), stop after `patience`
        epochs without a better value and return the best epoch's model; without it, return the last epoch's."""
        last = epochs or self.settings.epochs
        torch.set_num_threads(self.settings.threads)
        best_state = self._resume(report)
        while len(self.log.losses) < last and not (validate is not None and self._stalled()):
            epoch = len(self.log.losses) + 1
            started = time.perf_counter()
            loss = self._epoch(epoch)
            self.log.losses.append(loss)
            if validate is not None:
                self.log.validation.append(validate(self._averaged_model()))
                if self.log.validation[-1] > max(self.log.validation[:-1], default=-np.inf):
                    self.log.best_epoch = epoch
                    best_state = copy.deepcopy(self._averaged_model().state_dict())
            else:
                self.log.best_epoch = epoch
            self.log.seconds.append(time.perf_counter() - started)
            self._save(best_state)
            report(self._line(epoch, last))
        model = self._averaged_model()
        if validate is not None and best_state is not None:
            model.load_state_dict(best_state)
        return model.eval()

    def _averaged_model(self) -> TwoTower:
        model = self.averaged.module
        assert isinstance(model, TwoTower)
        return model

    def _stalled(self) -> bool:
        """Asked before each epoch, the first after a resume included: a training that had stopped stays stopped."""
        return len(self.log.losses) - self.log.best_epoch >= self.settings.patience

    def _line(self, epoch: int, last: int) -> str:
        left = float(np.median(self.log.seconds)) * (last - epoch)
        shown = f", validation NDCG@10 {self.log.validation[-1]:.4f}" if self.log.validation else ""
        return f"two-tower epoch {epoch}/{last}: loss {self.log.losses[-1]:.4f}{shown}, at most {left:.0f} s left"

    def _epoch(self, epoch: int) -> float:
        """One pass; the learning rate rises from 5 % over the first half epoch. Returns the mean loss."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, epoch])
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        self.model.train()
        bounds, users = self.cutter.cut(rng)
        sizes = np.cumsum(bounds[:, 1] - bounds[:, 0])
        enough = int(np.searchsorted(sizes, settings.max_events_per_epoch)) + 1
        bounds, users = bounds[:enough], users[:enough]
        total, count = 0.0, 0
        batches = batches_of_alike(bounds[:, 1] - bounds[:, 0], settings.batch_events, rng)
        for step, rows in enumerate(batches):
            for group in self.optimiser.param_groups:
                group["lr"] = settings.learning_rate * min(1.0, 0.05 + 2 * (epoch - 1 + step / len(batches)))
            window = self.cutter.windows(bounds[rows], users[rows])
            if len(window.target_item) == 0:
                continue
            loss = self._loss(window, rng)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.averaged.update_parameters(self.model)
            total += loss.item() * len(window.target_item)
            count += len(window.target_item)
        return total / max(count, 1)

    def _loss(self, window: Windows, rng: np.random.Generator) -> Tensor:
        def tensor(values: IntArray) -> Tensor:
            return torch.from_numpy(values).to(self.settings.device)

        hidden = self.model.encode(
            tensor(window.item_idx), tensor(window.ratings), tensor(window.gaps), tensor(window.profile)
        )
        users = self.model.query(
            hidden[tensor(window.query_row), tensor(window.query_position)], tensor(window.query_gap)
        )
        pairs = (window.target_query, window.target_item, *window.seen())
        target_query, target_item, seen_query, seen_item = (tensor(values) for values in pairs)
        vectors = self.model.item_vectors()
        if self._full:
            return full_softmax_loss(users, vectors, target_query, target_item, seen_query, seen_item)
        uniform = tensor(rng.integers(0, self.shape.n_items, self.settings.uniform_negatives))
        return sampled_softmax_loss(users, vectors, target_query, target_item, seen_query, seen_item, uniform)

    def _save(self, best_state: dict[str, Tensor] | None) -> None:
        if self.checkpoint is None:
            return
        with replacing_file(self.checkpoint) as beside:
            torch.save(
                {
                    "identity": self._identity,
                    "model": self.model.state_dict(),
                    "averaged": self.averaged.state_dict(),
                    "best": best_state,
                    "optimiser": self.optimiser.state_dict(),
                    "log": asdict(self.log),
                },
                beside,
            )

    def _resume(self, report: Callable[[str], None]) -> dict[str, Tensor] | None:
        """Continue from the checkpoint if it is of this very training; returns the best weights so far."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        stored = torch.load(self.checkpoint, map_location=self.settings.device, weights_only=True)
        if stored["identity"] != self._identity:
            return None
        self.model.load_state_dict(stored["model"])
        self.averaged.load_state_dict(stored["averaged"])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.log = TrainingLog(**stored["log"])
        report(f"two-tower: continuing after epoch {len(self.log.losses)}")
        best: dict[str, Tensor] | None = stored["best"]
        return best
