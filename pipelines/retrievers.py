"""Stages `retrievers_t0`, `retrievers_t1`, `retrievers_t2`, `retrievers_all`: fitting the retrievers.

In: events up to a cutoff. Out: `work/<stage>/`, a folder a retriever, and the two-tower model's log. Absent: the
ranker.

The number of epochs is found once, on the window after T0, and used for every later fit, so that the retrievers of the
rankers' windows and those that serve are made by the same steps.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipelines.job import Job
from recsys.atomic_io import read_json, replacing_folder, write_json
from recsys.bundle import save_retrievers
from recsys.columns import TIMESTAMP
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.retrieval.ials import Ials
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.retrievers import KnownEvents, fit_retriever, load_retrievers
from recsys.retrieval.two_tower import TwoTower
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from recsys.retrieval.two_tower_training import Trainer, validation_ndcg

VALIDATION_CONTEXTS = 4_000
RECALL_QUERIES = 200


def fit_t0(job: Job) -> None:
    """Fit on events up to T0; the window (T0, T1] decides how many epochs the two-tower model trains."""
    split = job.split
    contexts = PredictionPoints.from_events(
        job.window(split.t0, split.t1), most=VALIDATION_CONTEXTS, seed=job.config.tower.seed
    )
    states = job.histories.states_at(contexts.user_id, contexts.timestamp)
    target = job.catalogue.to_idx(contexts.event_item_id)

    def validate(model: TwoTower) -> float:
        return validation_ndcg(model, states, contexts.event_context, target)

    checkpoint = _checkpoint(job, "retrievers_t0")
    trainer = Trainer(job.catalogue, job.histories, split.t0, job.config.tower, checkpoint)
    model = trainer.fit(validate, report=job.report)
    job.report(f"two-tower: {trainer.log.best_epoch} epochs, validation NDCG@10 {max(trainer.log.validation):.4f}")
    _save(job, "retrievers_t0", split.t0, model, trainer)
    checkpoint.unlink(missing_ok=True)


def fit_t1(job: Job) -> None:
    _fit(job, "retrievers_t1", job.split.t1)


def fit_t2(job: Job) -> None:
    _fit(job, "retrievers_t2", job.split.t2)


def fit_all(job: Job) -> None:
    _fit(job, "retrievers_all", job.split.end)


def load(job: Job, stage: str) -> list[Retriever]:
    return load_retrievers(job.work(stage), job.catalogue)


def _fit(job: Job, stage: str, cutoff: int) -> None:
    checkpoint = _checkpoint(job, stage)
    trainer = Trainer(job.catalogue, job.histories, cutoff, job.config.tower, checkpoint)
    epochs = int(read_json(job.work("retrievers_t0") / "log.json")["tower"]["best_epoch"])
    _save(job, stage, cutoff, trainer.fit(epochs=epochs, report=job.report), trainer)
    checkpoint.unlink(missing_ok=True)


def _checkpoint(job: Job, stage: str) -> Path:
    """Where an interrupted training is continued from: named after the stage's key, so that changed code or settings
    begin anew. Left-overs of other keys are removed."""
    mine = job.work(f"{stage}.{job.key[:12]}.checkpoint")
    for other in job.home.work.glob(f"{stage}.*.checkpoint"):
        if other != mine:
            other.unlink()
    return mine


def _save(job: Job, stage: str, cutoff: int, model: TwoTower, trainer: Trainer) -> None:
    """Fit the other retrievers on events up to the cutoff and write all of them."""
    config = job.config
    tower = TwoTowerRetriever.from_model(model, config.index)
    known = KnownEvents.through(job.histories, len(job.catalogue), cutoff)
    retrievers: list[Retriever] = [
        tower,
        *(fit_retriever(name, known, config.retrievers[name]) for name in config.retrievers),
    ]
    recent = _recent_states(job, cutoff)
    indexes = {tower.name: tower.index.measure(tower.item_vectors, tower.encode(recent), at=100)}
    for retriever in retrievers:
        if isinstance(retriever, Ials) and retriever.index is not None:
            indexes[retriever.name] = retriever.index.measure(retriever.factors, retriever.encode(recent), at=100)
    for name, index in indexes.items():
        job.report(f"{stage}: {name}, {index.kind} index, recall {index.recall:.4f} of the exact top {index.at}")
    with replacing_folder(job.work(stage)) as beside:
        save_retrievers(retrievers, beside)
        write_json(
            beside / "log.json",
            {
                "tower": asdict(trainer.log),
                "cutoff": cutoff,
                "indexes": {name: asdict(index) for name, index in indexes.items()},
            },
        )


def _recent_states(job: Job, cutoff: int) -> StateBatch:
    """States of the last users up to the cutoff, as queries for measuring the index."""
    events = job.tables.events
    users = events[events[TIMESTAMP] <= cutoff].drop_duplicates("user_id", keep="last").tail(RECALL_QUERIES)
    return job.histories.states_at(users["user_id"].to_numpy(), np.full(len(users), cutoff + 1))
