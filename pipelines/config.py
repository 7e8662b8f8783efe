"""Settings of every stage, and how their defaults follow the size of the data.

Stage: all of the offline track. In: counts of the data set, the tuned settings that are checked in for it, and what
the user set. Out: `PipelineConfig`, whose parts are handed to the library. Absent: the environment (`recsys.settings`)
and the search that finds tuned settings (`studies.tuning`).

The rules below were found on validation windows (docs/experiments.md, docs/tuning.md), never on the test window.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

import numpy as np
import pandas as pd

from recsys.atomic_io import read_json
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, POPULARITY, RETRIEVERS, TIMESTAMP, TWO_TOWER
from recsys.errors import ConfigError
from recsys.ranking.training import RankerSettings
from recsys.recommender import RecommenderSettings
from recsys.retrieval.index import Kind
from recsys.retrieval.two_tower_training import TowerSettings

TUNED: Final = Path(__file__).resolve().parent / "tuned"  # a file a data set, as `recsys tune --save` writes it
OF_RETRIEVERS, RRF, RANKER, TOWER = "retrievers", "rrf_weights", "ranker", "tower"  # sections of a tuned file
ABOUT: Final = "about"  # and where they come from; not a setting
CHOSEN: Final = ("seed", "epochs", "device", "threads")  # by whoever runs a training, hence never by a file


@dataclass(frozen=True)
class PipelineConfig:
    tower: TowerSettings
    retrievers: dict[str, dict[str, Any]]  # name of a retriever -> keyword arguments of its `fit`
    ranker: RankerSettings
    recommender: RecommenderSettings
    index: Kind = "auto"
    latency_budget_ms: float = 50.0
    refit: bool = True
    feature_store: str = "sqlite"  # which store the features were written to
    tuned: str | None = None  # name of the tuned settings in force

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_for(
    events: pd.DataFrame,
    *,
    device: str = "cpu",
    epochs: int | None = None,
    index: Kind = "auto",
    seed: int = 7,
    refit: bool = True,
    latency_budget_ms: float = 50.0,
    feature_store: str = "sqlite",
) -> PipelineConfig:
    """Defaults for a data set. Larger data: fewer passes of the two-tower model, stronger EASE regularisation.

    Only the first seven tenths in time are looked at, so that nothing of the later windows enters by way of a setting.
    The half-life of popularity is the time that the last fifth of those events took.
    """
    times = np.sort(events[TIMESTAMP].to_numpy(np.int64))
    times = times[: len(times) * 7 // 10]
    n = len(times)
    large = n > 200_000
    recent_days = (times[-1] - times[n * 4 // 5]) / 86_400 if n else 30.0
    tower = TowerSettings(
        epochs=epochs or (9 if large else 20),
        batch_events=4_096 if large else 2_560,
        max_events_per_epoch=250_000,
        patience=2 if large else 4,
        learning_rate=4e-3,
        device=device,
        seed=seed,
    )
    return PipelineConfig(
        tower=tower,
        retrievers={
            EASE: {"regularisation": float(np.clip(0.015 * n, 500, 2_000)), "power": 0.95},
            IALS: {"dim": 128, "regularisation": 23.0, "alpha": 2.0, "iterations": 15, "power": 0.85},
            ITEM_KNN: {"shrinkage": 4.0, "neighbours": 500, "power": 1.4},
            COVISITATION: {"decay": 0.85, "damping": 0.45, "history_decay": 0.75},
            POPULARITY: {"half_life_days": float(np.clip(recent_days, 7, 365))},
        },
        ranker=replace(RankerSettings(), seed=seed),
        recommender=RecommenderSettings(
            rrf_weights={TWO_TOWER: 1.3, EASE: 0.8, IALS: 0.3, ITEM_KNN: 0.1, COVISITATION: 0.2, POPULARITY: 0.25}
        ),
        index=index,
        latency_budget_ms=latency_budget_ms,
        refit=refit,
        feature_store=feature_store,
    )


@dataclass(frozen=True)
class Tuned:
    """A file of tuned settings as it was read; `with_tuned` checks them.

    fingerprint  of the data that were searched (`recsys.data.tables.DatasetInfo`)
    content      {"retrievers": {name: {...}}, "rrf_weights": {name: weight}, "ranker": {...}, "tower": {...}}, all
                 optional,
                 and "about"
    """

    path: Path
    fingerprint: str
    content: Mapping[str, Any]


def tuned_path(dataset: str) -> Path:
    """Where the tuned settings of a data set are, or would be."""
    return TUNED / f"{dataset}.json"


def read_tuned(path: Path) -> Tuned:
    """Raises ConfigError for a file that is no JSON object, or does not say which data were searched."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}. Correct it, or take it away and search again.") from error
    value = _object(content, path, "the file")
    for key in (ABOUT, "data"):
        value = _object(value.get(key, {}), path, key)
    fingerprint = value.get("fingerprint")
    if not isinstance(fingerprint, str):
        raise ConfigError(
            f"{path}: {ABOUT}.data.fingerprint must name the data that were searched, as `recsys tune --save` does."
        )
    return Tuned(path, fingerprint, content)


def with_tuned(config: PipelineConfig, tuned: Tuned) -> PipelineConfig:
    """The settings that a file names, laid over `config`.

    Raises ConfigError, with file and key, for a key that is no setting or not one to tune, and for a value that has
    not the setting's type, is not finite or is below 0. A whole number may stand for a float.
    """
    path = tuned.path
    parts = _checked(tuned.content, (OF_RETRIEVERS, RRF, RANKER, TOWER, ABOUT), path, "")
    retrievers = _checked(parts.get(OF_RETRIEVERS, {}), config.retrievers, path, "retrievers.")
    over = {
        name: _values(
            retrievers[name], {key: type(value) for key, value in settings.items()}, path, f"retrievers.{name}."
        )
        for name, settings in config.retrievers.items()
        if name in retrievers
    }
    rrf_weights = _values(parts.get(RRF, {}), dict.fromkeys(RETRIEVERS, float), path, "rrf_weights.")
    ranker = _values(parts.get(RANKER, {}), _tunable(RankerSettings), path, "ranker.")
    tower = _values(parts.get(TOWER, {}), _tunable(TowerSettings), path, "tower.")
    try:
        return replace(
            config,
            retrievers={name: {**settings, **over.get(name, {})} for name, settings in config.retrievers.items()},
            recommender=replace(config.recommender, rrf_weights={**config.recommender.rrf_weights, **rrf_weights}),
            ranker=replace(config.ranker, **ranker),
            tower=replace(config.tower, **tower),
            tuned=path.stem,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _tunable(settings: type[RankerSettings | TowerSettings]) -> dict[str, type]:
    """The numbers among the settings, with their types."""
    hints = get_type_hints(settings)
    return {name: hint for name, hint in hints.items() if hint in (int, float) and name not in CHOSEN}


def _object(part: Any, path: Path, what: str) -> Mapping[str, Any]:
    if not isinstance(part, dict):
        raise ConfigError(f"{path}: {what} must be an object with settings, not {part!r}.")
    return part


def _checked(part: Any, known: Iterable[str], path: Path, where: str) -> Mapping[str, Any]:
    names, settings = list(known), _object(part, path, where.rstrip(".") or "the file")
    for key in settings:
        if key not in names:
            raise ConfigError(f"{path}: there is no setting {where}{key} to tune; known are {', '.join(names)}.")
    return settings


def _values(part: Any, known: Mapping[str, type], path: Path, where: str) -> dict[str, Any]:
    out = {}
    for key, value in _checked(part, known, path, where).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{path}: {where}{key} must be a number, not {value!r}.")
        if known[key] is int and not isinstance(value, int):
            raise ConfigError(f"{path}: {where}{key} must be a whole number, not {value!r}.")
        if not 0 <= value <= sys.float_info.max:
            raise ConfigError(f"{path}: {where}{key} must be finite and at least 0, not {value!r}.")
        out[key] = known[key](value)
    return out
