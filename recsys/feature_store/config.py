"""Where one data set's feature store lives, as Feast's own configuration."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml  # type: ignore[import-untyped]
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from recsys.atomic_io import read_json
from recsys.errors import ConfigError
from recsys.workspace import DatasetWorkspace

# Without them a call to a machine that went away takes a quarter of an hour, or has no end. redis-py tries four times.
TIME_LIMITS_S: Final = {"socket_timeout": 2, "socket_connect_timeout": 1}


@dataclass(frozen=True)
class FeatureStoreConfig:
    """One feature store.

    repo              the `feature_repo` folder
    redis_connection  "host:port[,option=value...]"; needed for "redis", an error otherwise
    registry_path     database URL of a shared registry (postgresql+psycopg://...); None is SQLite in the home
    events_url        of a shared event table; None is the home's own

    The last three may hold passwords: none of them is written anywhere, `address` is.
    """

    home: DatasetWorkspace
    repo: Path
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis_connection: str | None = None
    registry_path: str | None = None
    events_url: str | None = None

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
        """Feast's project: the data set's name and eight digits that say which data its rows are made of.

        Homes with the same files and one shared event table share their rows on a server; a data set that takes the
        place of another begins without any.
        """
        info = self.home.data / "dataset.json"
        made_of = [read_json(info)["fingerprint"] if info.exists() else ""]
        if self.online_store == "redis" or self.registry_path is not None:
            made_of.append(_shown(self.events_url) if self.events_url else str(self.home.root.resolve()))
        readable = re.sub(r"[^0-9a-zA-Z]+", "_", self.home.name).strip("_")
        return f"recsys_{readable}_{hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]}"

    @property
    def address(self) -> str:
        """Which store this is, to be shown and kept: kind, servers and databases, without users, passwords, options."""
        parts = (self.redis_connection or "").split(",")
        server = next((part for part in parts if "=" not in part), "")  # Feast takes the first
        redis = ",".join([server, *(part for part in parts if part.startswith("db="))])
        registry = _shown(self.registry_path) if self.registry_path is not None else ""
        return " ".join(part for part in (self.online_store, redis, registry) if part)

    @property
    def registry_file(self) -> Path | None:
        """The embedded registry; None where a server keeps it."""
        return None if self.registry_path else self.home.feast.resolve() / "registry.db"

    @property
    def online_file(self) -> Path | None:
        """The embedded online store; None where Redis keeps it."""
        return None if self.online_store == "redis" else self.home.feast.resolve() / "online.db"

    def variables(self) -> dict[str, str]:
        """What `feature_store.yaml` and `definitions.py` leave open: the environment for the `feast` command."""
        return {
            "RECSYS_FEAST_PROJECT": self.project,
            "RECSYS_FEAST_REGISTRY": self.registry_path or str(URL.create("sqlite", database=str(self.registry_file))),
            "RECSYS_FEAST_ONLINE": str(self.online_file or ""),
            "RECSYS_FEATURES": str(self.home.features.resolve()),
        }

    def feast_config(self) -> Any:
        """Feast's RepoConfig: the YAML with this home's values in place of its variables, and Redis where asked."""
        from feast import RepoConfig

        raw = yaml.safe_load((self.repo / "feature_store.yaml").read_text(encoding="utf-8"))
        given = self.variables()
        raw["project"], raw["registry"]["path"] = given["RECSYS_FEAST_PROJECT"], given["RECSYS_FEAST_REGISTRY"]
        raw["online_store"]["path"] = given["RECSYS_FEAST_ONLINE"]
        if self.online_store == "redis":
            # skip_dedup: Feast would refuse a row whose last event is the same, although it knows more of older ones.
            connection = with_time_limits(self.redis_connection or "")
            raw["online_store"] = {"type": "redis", "connection_string": connection, "skip_dedup": True}
        return RepoConfig(repo_path=self.repo, **raw)


def _shown(url: str) -> str:
    """A database's address without user, password and options."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return "an unknown database"
    plain = URL.create(parsed.drivername, host=parsed.host, port=parsed.port, database=parsed.database)
    return plain.render_as_string()


def with_time_limits(redis_connection: str) -> str:
    """The connection with TIME_LIMITS_S for those that it does not name itself."""
    named = {part.partition("=")[0] for part in redis_connection.split(",")}
    limits = [f"{name}={limit_s}" for name, limit_s in TIME_LIMITS_S.items() if name not in named]
    return ",".join([redis_connection, *limits])
