"""Settings of every stage: rules that follow the size of the data, and the tuned settings of a data set over them.

The rules below were found on validation windows (docs/experiments.md, docs/tuning.md), never on the test window.
"""

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

import numpy as np
import pandas as pd

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
    """The rules. They look at the first seven tenths of the events in time, so that nothing of the later windows enters
    by way of a setting. The half-life of popularity is the time that the last fifth of those events took."""
    times = np.sort(events[TIMESTAMP].to_numpy(np.int64))
    times = times[: len(times) * 7 // 10]
    n = len(times)
    large = n > 200_000
    recent_days = (times[-1] - times[n * 4 // 5]) / 86_400 if n else 30.0
    return PipelineConfig(
        tower=TowerSettings(
            epochs=epochs or (9 if large else 20),
            batch_events=4_096 if large else 2_560,
            max_events_per_epoch=250_000,
            patience=2 if large else 4,
            learning_rate=4e-3,
            device=device,
            seed=seed,
        ),
        retrievers={
            EASE: {"regularisation": float(np.clip(0.015 * n, 500, 2_000)), "power": 0.95},
            IALS: {"dim": 128, "regularisation": 23.0, "alpha": 2.0, "iterations": 15, "power": 0.85},
            ITEM_KNN: {"shrinkage": 4.0, "neighbours": 500, "power": 1.4},
            COVISITATION: {"decay": 0.85, "damping": 0.45, "history_decay": 0.75},
            POPULARITY: {"half_life_days": float(np.clip(recent_days, 7, 365))},
        },
        ranker=RankerSettings(seed=seed),
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
                 optional, and "about"
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
        content = json.loads(path.read_bytes())
        fingerprint = content[ABOUT]["data"]["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no JSON object with about.data.fingerprint ({error!r}). Correct it, or take it away and search "
            "again."
        ) from error
    return Tuned(path, str(fingerprint), content)


def with_tuned(config: PipelineConfig, tuned: Tuned) -> PipelineConfig:
    """The settings that a file names, laid over `config`.

    Raises ConfigError, with file and key, for a key that is no setting or not one to tune, and for a value that has
    not the setting's type, is not finite or is below 0. A whole number may stand for a float.
    """
    content = tuned.content
    try:
        _require_known("", content, (ABOUT, OF_RETRIEVERS, RRF, RANKER, TOWER))
        _require_known(OF_RETRIEVERS, content.get(OF_RETRIEVERS, {}), config.retrievers)
        retrievers = {**config.retrievers}
        for name, values in content.get(OF_RETRIEVERS, {}).items():
            types = {key: type(value) for key, value in retrievers[name].items()}
            retrievers[name] = retrievers[name] | _numbers(f"{OF_RETRIEVERS}.{name}", values, types)
        weights = _numbers(RRF, content.get(RRF, {}), dict.fromkeys(RETRIEVERS, float))
        return replace(
            config,
            retrievers=retrievers,
            recommender=replace(config.recommender, rrf_weights=config.recommender.rrf_weights | weights),
            ranker=replace(config.ranker, **_numbers(RANKER, content.get(RANKER, {}), _tunable(RankerSettings))),
            tower=replace(config.tower, **_numbers(TOWER, content.get(TOWER, {}), _tunable(TowerSettings))),
            tuned=tuned.path.stem,
        )
    except ConfigError as error:
        raise ConfigError(f"{tuned.path}: {error}") from error


def _tunable(settings: type[RankerSettings | TowerSettings]) -> dict[str, type]:
    """The numbers among the settings, with their types."""
    hints = get_type_hints(settings)
    return {name: hint for name, hint in hints.items() if hint in (int, float) and name not in CHOSEN}


def _require_known(section: str, values: Any, names: Collection[str]) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{section} must hold settings by name, not {values!r}")
    if unknown := [name for name in values if name not in names]:
        raise ConfigError(f"there is no setting {section}{'.' if section else ''}{unknown[0]} to tune")


def _numbers(section: str, values: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """The values, each as its setting's type."""
    _require_known(section, values, types)
    for key, value in values.items():
        allowed = (int,) if types[key] is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 <= value <= sys.float_info.max:
            kind = "a whole number" if types[key] is int else "a finite number"
            raise ConfigError(f"{section}.{key} must be {kind} of at least 0, not {value!r}")
    return {key: types[key](value) for key, value in values.items()}
