"""Settings of every stage: rules that follow the size of the data, and the tuned settings of a data set over them.

The rules below were found on validation windows (docs/experiments.md, docs/tuning.md), never on the test window.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

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
                 optional, and "about"
    """

    path: Path
    fingerprint: str
    content: Mapping[str, Any]


def tuned_path(dataset: str) -> Path:
    """Where the tuned settings of a data set are, or would be."""
    return TUNED / f"{dataset}.json"


class _Data(BaseModel, extra="allow"):
    fingerprint: str


class _About(BaseModel, extra="allow"):
    data: _Data


class _TunedFile(BaseModel, extra="allow"):
    about: _About


def read_tuned(path: Path) -> Tuned:
    """Raises ConfigError for a file that is no JSON object, or does not say which data were searched."""
    try:
        found = _TunedFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}. Correct it, or take it away and search again.") from error
    return Tuned(path, found.about.data.fingerprint, found.model_dump())


def with_tuned(config: PipelineConfig, tuned: Tuned) -> PipelineConfig:
    """The settings that a file names, laid over `config`.

    Raises ConfigError, with file and key, for a key that is no setting or not one to tune, and for a value that has
    not the setting's type, is not finite or is below 0. A whole number may stand for a float.
    """
    retrievers = {
        name: _numbers(name, {key: type(value) for key, value in settings.items()})
        for name, settings in config.retrievers.items()
    }
    sections = {
        ABOUT: Any,
        OF_RETRIEVERS: _section(OF_RETRIEVERS, retrievers),
        RRF: _numbers(RRF, dict.fromkeys(RETRIEVERS, float)),
        RANKER: _numbers(RANKER, _tunable(RankerSettings)),
        TOWER: _numbers(TOWER, _tunable(TowerSettings)),
    }
    try:
        over = _section("tuned", sections).model_validate(tuned.content).model_dump(exclude_unset=True)
        return replace(
            config,
            retrievers={
                name: {**old, **over.get(OF_RETRIEVERS, {}).get(name, {})} for name, old in config.retrievers.items()
            },
            recommender=replace(
                config.recommender, rrf_weights={**config.recommender.rrf_weights, **over.get(RRF, {})}
            ),
            ranker=replace(config.ranker, **over.get(RANKER, {})),
            tower=replace(config.tower, **over.get(TOWER, {})),
            tuned=tuned.path.stem,
        )
    except ValidationError as error:
        raise ConfigError(f"{tuned.path}: {_first(error)}.") from error
    except ConfigError as error:
        raise ConfigError(f"{tuned.path}: {error}") from error


def _tunable(settings: type[RankerSettings | TowerSettings]) -> dict[str, type]:
    """The numbers among the settings, with their types."""
    hints = get_type_hints(settings)
    return {name: hint for name, hint in hints.items() if hint in (int, float) and name not in CHOSEN}


def _numbers(name: str, known: Mapping[str, type]) -> type[BaseModel]:
    limits = {int: Field(ge=0), float: Field(ge=0, allow_inf_nan=False)}
    return _section(name, {key: Annotated[kind, limits[kind]] for key, kind in known.items()})


def _section(name: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    """A model whose fields are all optional and no others allowed."""
    optional: dict[str, Any] = {key: (kind, None) for key, kind in fields.items()}
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **optional)


def _first(error: ValidationError) -> str:
    """The first problem: which key, and what is wrong with it."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {where} to tune"
    return f"{where}: {problem['msg']}" if where else problem["msg"]
