"""Which versions get the requests beside the champion, as one JSON tag of the registered model."""

import json
from dataclasses import asdict, dataclass
from typing import Final

from recsys.errors import ConfigError
from recsys.experiments.assignment import Arm, Experiment

MOST_VERSIONS: Final = 2  # beside the champion: each is a whole model in the memory of every worker
DIVERSITY: Final = "diversity"  # of requests that name none
EXPLORATION: Final = "exploration"  # share of the slots (`recsys.experiments.exploration`)
SETTINGS: Final = (DIVERSITY, EXPLORATION)  # what an arm may set, each from 0 to 1


@dataclass(frozen=True)
class Traffic:
    """shadow: a version that is scored beside the champion, and shown to nobody; experiment: who is answered by what.

    Raises ConfigError for more versions than MOST_VERSIONS, and for settings of an arm that do not exist.
    """

    shadow: int | None = None
    experiment: Experiment | None = None

    def __post_init__(self) -> None:
        if len(self.versions) > MOST_VERSIONS:
            raise ConfigError(
                f"traffic names the versions {', '.join(map(str, self.versions))}; {MOST_VERSIONS} fit beside the"
                " champion. An arm without a version is the champion's."
            )
        for arm in self.experiment.arms if self.experiment else ():
            for name, value in arm.settings.items():
                if name not in SETTINGS or not isinstance(value, int | float) or not 0 <= value <= 1:
                    names = " and ".join(SETTINGS)
                    raise ConfigError(f"arm {arm.name} sets {name} to {value!r}; {names} may be set, from 0 to 1")

    @property
    def versions(self) -> tuple[int, ...]:
        """All that are named, in their order."""
        arms = self.experiment.arms if self.experiment else ()
        return tuple(sorted({v for v in (self.shadow, *(arm.version for arm in arms)) if v is not None}))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Traffic":
        """Raises ConfigError for anything that `to_json` has not written."""
        try:
            stored = json.loads(text)
            experiment = stored["experiment"]
            if experiment is not None:
                experiment = Experiment(experiment["name"], tuple(Arm(**arm) for arm in experiment["arms"]))
            return cls(stored["shadow"], experiment)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"the traffic {text[:200]!r} cannot be read ({error})") from error
