"""Where one data set's feature store lives, and how Feast is told.

Stage: features and serving. In: a `DatasetWorkspace`, the `feature_repo` folder, and servers if there are any. Out:
Feast's own configuration object; the variables with which the `feast` command sees the same store. Absent: the
environment (whoever builds this object reads it) and any connection.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Final, Literal

from recsys.errors import ConfigError
from recsys.feature_store.importing import import_feast
from recsys.workspace import DatasetWorkspace

# Without them a call to a machine that went away without a word takes a quarter of an hour, or has no end. redis-py
# tries four times with pauses, so that with them a call takes up to some twenty seconds.
TIME_LIMITS_S: Final = {"socket_timeout": 2, "socket_connect_timeout": 1}
# scheme, then user and password as SQLAlchemy reads them, host and port, database
REGISTRY_ADDRESS: Final = re.compile(r"([\w+]+://)(?:[^:/]*(?::[^@]*)?@)?([\w.:\[\]-]*)(/[\w./-]*)?")


@dataclass(frozen=True)
class FeatureStoreConfig:
    """One feature store.

    home              everything embedded lies below `home.feast` and `home.features`
    repo              the `feature_repo` folder
    online_store      "sqlite" (embedded) or "redis"
    redis_connection  "host:port[,option=value...]"; needed for "redis", an error otherwise. May hold a password, as the
                      next may: neither is written anywhere (`address` is)
    registry_path     database URL of a shared registry (postgresql+psycopg://...); None is SQLite in the home
    """

    home: DatasetWorkspace
    repo: Path
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis_connection: str | None = None
    registry_path: str | None = None

    def __post_init__(self) -> None:
        if self.online_store not in ("sqlite", "redis"):
            raise ConfigError(f"The online store is {self.online_store!r}; choose 'sqlite' or 'redis'.")
        if (self.online_store == "redis") != (self.redis_connection is not None):
            raise ConfigError("Give redis_connection together with online_store='redis', and only then.")
        for name in ("feature_store.yaml", "definitions.py"):
            if not (self.repo / name).is_file():
                raise ConfigError(f"No {name} in {self.repo}. Point `repo` at the folder feature_repo.")

    @property
    def project(self) -> str:
        """Feast's project: the data set's name and eight digits of the home's path.

        Two homes that share a Redis or a PostgreSQL thereby never read each other's rows. Processes that share a
        home must see it under one path, which the absolute paths in the registry ask for anyway.
        """
        readable = re.sub(r"[^0-9a-zA-Z]+", "_", self.home.name).strip("_")
        return f"recsys_{readable}_{hashlib.sha256(str(self.home.root.resolve()).encode()).hexdigest()[:8]}"

    @property
    def address(self) -> str:
        """Which store this is, to be shown and kept: kind, servers and databases, without users, passwords, options."""
        found: list[str] = [self.online_store]
        if self.redis_connection is not None:
            parts = self.redis_connection.split(",")
            servers = [part for part in parts if "=" not in part][:1]  # Feast takes the first
            found.append(",".join([*servers, *(part for part in parts if part.startswith("db="))]))
        if self.registry_path is not None:
            told = REGISTRY_ADDRESS.match(self.registry_path)
            found.append("".join(told.groups("")) if told else "an unknown registry")
        return " ".join(found)

    @property
    def registry_file(self) -> Path | None:
        """The embedded registry; None where a server keeps it."""
        return None if self.registry_path else self.home.feast.resolve() / "registry.db"

    @property
    def online_file(self) -> Path | None:
        """The embedded online store; None where Redis keeps it."""
        return None if self.online_store == "redis" else self.home.feast.resolve() / "online.db"

    def variables(self, online_file: Path | None = None) -> dict[str, str]:
        """What `feature_store.yaml` and `definitions.py` leave open; also the environment for the `feast` command."""
        return {
            "RECSYS_FEAST_PROJECT": self.project,
            "RECSYS_FEAST_REGISTRY": self.registry_path or f"sqlite:///{self.registry_file}",
            "RECSYS_FEAST_ONLINE": str(online_file or self.online_file or ""),
            "RECSYS_FEATURES": str(self.home.features.resolve()),
        }

    def feast_config(self, online_file: Path | None = None) -> Any:
        """Feast's RepoConfig: the YAML with its variables filled, and Redis in place of SQLite where asked.

        `online_file` puts SQLite elsewhere (`materialize` builds beside). The environment is not touched.
        """
        import yaml  # type: ignore[import-untyped]

        text = (self.repo / "feature_store.yaml").read_text(encoding="utf-8")
        uncommented = re.sub(r"(?m)^#.*$", "", text)
        raw = yaml.safe_load(Template(uncommented).substitute(self.variables(online_file)))
        if self.online_store == "redis":
            # Feast's Redis refuses a row that is not newer, by whole seconds: of two ratings in one second it would
            # lose the second. Without that check the last write wins, as in SQLite, and `push_state` keeps order.
            raw["online_store"] = {
                "type": "redis",
                "connection_string": with_time_limits(self.redis_connection or ""),
                "skip_dedup": True,
            }
        return import_feast().RepoConfig(repo_path=self.repo, **raw)


def with_time_limits(redis_connection: str) -> str:
    """The connection with TIME_LIMITS_S for those that it does not name itself."""
    named = {part.partition("=")[0] for part in redis_connection.split(",")}
    limits = [f"{name}={limit_s}" for name, limit_s in TIME_LIMITS_S.items() if name not in named]
    return ",".join([redis_connection, *limits])
