"""Stages `retrievers_t0`, `retrievers_t1`, `retrievers_t2`, `retrievers_all`: fitting the retrievers up to a cutoff.

Each writes a folder for every retriever, and the two-tower model's log. The number of epochs is found once, on the
window after T0, and used for every later fit, so that the retrievers of the rankers' windows and those that serve are
made by the same steps.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipelines.config import PipelineConfig
from pipelines.stage_runner import Report, code_fingerprint
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json, replacing_folder, write_json
from recsys.bundle import save_retrievers
from recsys.columns import TIMESTAMP, USER_ID
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.retrieval.ials import Ials
from recsys.retrieval.retrievers import KnownEvents, fit_retriever
from recsys.retrieval.two_tower import TwoTower
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from recsys.retrieval.two_tower_training import Trainer, validation_ndcg

VALIDATION_CONTEXTS = 4_000
RECALL_QUERIES = 200


def fit_first(data: TrainingSet, config: PipelineConfig, folder: Path, report: Report) -> None:
    """Fit on events up to T0; the window (T0, T1] decides how many epochs the two-tower model trains."""
    split, seed = data.split, config.tower.seed
    contexts = PredictionPoints.from_events(data.window(split.t0, split.t1), most=VALIDATION_CONTEXTS, seed=seed)
    states = data.histories.states_at(contexts.user_id, contexts.timestamp)
    target = data.catalogue.to_idx(contexts.event_item_id)

    def validate(model: TwoTower) -> float:
        return validation_ndcg(model, states, contexts.event_context, target)

    checkpoint = _checkpoint(folder)
    trainer = Trainer(data.catalogue, data.histories, split.t0, config.tower, checkpoint)
    model = trainer.fit(validate, report=report)
    report(f"two-tower: {trainer.log.best_epoch} epochs, validation NDCG@10 {max(trainer.log.validation):.4f}")
    _fit_others_and_save(data, config, split.t0, trainer, model, folder, report)
    checkpoint.unlink(missing_ok=True)


def fit(data: TrainingSet, config: PipelineConfig, through: int, epochs: int, folder: Path, report: Report) -> None:
    """Fit on events up to `through`, seconds UTC; the two-tower model for `epochs`."""
    checkpoint = _checkpoint(folder)
    trainer = Trainer(data.catalogue, data.histories, through, config.tower, checkpoint)
    _fit_others_and_save(data, config, through, trainer, trainer.fit(epochs=epochs, report=report), folder, report)
    checkpoint.unlink(missing_ok=True)


def best_epochs(folder: Path) -> int:
    """How many epochs `fit_first`, which wrote `folder`, found best."""
    return int(read_json(folder / "log.json")["tower"]["best_epoch"])


def _checkpoint(folder: Path) -> Path:
    """Where an interrupted training goes on. The trainer knows a checkpoint of other data or settings; one of other
    code is removed here."""
    mine = folder.with_name(f"{folder.name}.{code_fingerprint(__name__)[:12]}.checkpoint")
    for other in folder.parent.glob(f"{folder.name}.*.checkpoint"):
        if other != mine:
            other.unlink()
    return mine


def _fit_others_and_save(
    data: TrainingSet,
    config: PipelineConfig,
    cutoff: int,
    trainer: Trainer,
    model: TwoTower,
    folder: Path,
    report: Report,
) -> None:
    """Fit the other retrievers on events up to the cutoff and write all of them."""
    known = KnownEvents.through(data.histories, len(data.catalogue), cutoff)
    tower = TwoTowerRetriever.from_model(model, config.index)
    retrievers = [tower, *(fit_retriever(name, known, settings) for name, settings in config.retrievers.items())]
    recent = _recent_states(data, cutoff)
    indexes = {tower.name: tower.index.measure(tower.item_vectors, tower.encode(recent), at=100)}
    for retriever in retrievers:
        if isinstance(retriever, Ials) and retriever.index is not None:
            indexes[retriever.name] = retriever.index.measure(retriever.factors, retriever.encode(recent), at=100)
    for name, index in indexes.items():
        report(f"{folder.name}: {name}, {index.kind} index, recall {index.recall:.4f} of the exact top {index.at}")
    with replacing_folder(folder) as beside:
        save_retrievers(retrievers, beside)
        measured = {name: asdict(index) for name, index in indexes.items()}
        write_json(beside / "log.json", {"tower": asdict(trainer.log), "cutoff": cutoff, "indexes": measured})


def _recent_states(data: TrainingSet, cutoff: int) -> StateBatch:
    """States of the last users up to the cutoff, as queries for measuring the index."""
    events = data.tables.events
    users = events[events[TIMESTAMP] <= cutoff].drop_duplicates(USER_ID, keep="last").tail(RECALL_QUERIES)
    return data.histories.states_at(users[USER_ID].to_numpy(), np.full(len(users), cutoff + 1))
