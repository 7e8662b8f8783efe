"""The one place that touches MLflow: how a client is opened, locked, and what its errors become.

MLflow's global state stays untouched: every call names its URI, so that two registries in one process never mix.
"""

import errno
import fcntl
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from recsys.errors import RegistryError
from recsys.events import sqlite_url

# MLflow takes these from the environment only. Telemetry is off whatever was set: its client starts on `import mlflow`
# and would call home. The others a person may override: MLflow's own (120 s, 7 retries) make a command hang for minutes
# when a server is down.
_ALWAYS: Final = {"MLFLOW_DISABLE_TELEMETRY": "true"}
_DEFAULTS: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_DATABASE_ATTEMPTS: Final = 3  # MLflow's 10 take 102 s to say that a database is not there


class Backend:
    """A tracking server or database, opened on first use."""

    def __init__(self, tracking_uri: str | None, folder: Path) -> None:
        self.folder = folder.resolve()
        self.is_default = tracking_uri is None
        self.database = self.folder / "mlflow.db"  # where the store is the embedded one
        # For "sqlite:" MLflow makes the folder itself, and gets the name wrong where the URL has an escape in it.
        embedded = sqlite_url(self.database).set(drivername="sqlite+pysqlite")
        self.uri = tracking_uri or embedded.render_as_string(hide_password=False)
        self.is_server = self.uri.startswith(("http://", "https://"))
        self._client: Any = None

    @property
    def shown(self) -> str:
        """The folder of the embedded store, or the URI without a password."""
        return str(self.folder) if self.is_default else _without_password(self.uri)

    @property
    def exists(self) -> bool:
        """False where reading would only create an empty database."""
        return not self.is_default or self.database.exists()

    @property
    def client(self) -> Any:
        """The MlflowClient; a new database is created with its tables (2 s). Call it inside `speaking`."""
        if self._client is None:
            mlflow = load_mlflow()
            with warnings.catch_warnings(), self.locked():
                # Raised by SQLAlchemy 2.1 where MLflow configures its tables; nothing of ours can avoid it.
                warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
                self._client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine out of the same folder: MLflow's read-then-write of aliases and the
        creation of its tables are not atomic on a database. A server orders its own requests, and nobody writes to a
        folder that is read-only."""
        with ExitStack() as held:
            if not self.is_server:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    handle = held.enter_context((self.folder / ".lock").open("w"))
                    fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file closes, also by a process that dies
                except OSError as error:
                    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not self.exists:
                        raise
            yield

    @contextmanager
    def speaking(self, doing: str) -> Iterator[None]:
        """Turn what MLflow, its database or the disk raises into a RegistryError that says what to do."""
        mlflow_exception = self._mlflow_exception()
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (mlflow_exception, SQLAlchemyError, OSError) as error:
            step = (
                "Check that the server runs, that the address is right and that it admits this host name"
                if self.is_server
                else f"Check that {self.folder} can be written and that the database is an MLflow database"
            )
            reason = _without_password((str(error).splitlines() or [type(error).__name__])[0])
            raise RegistryError(f"Could not {doing} in the registry at {self.shown}: {reason} {step}.") from error

    @contextmanager
    def writing(self, doing: str) -> Iterator[Any]:
        """The client, with other writers kept out and errors translated."""
        with self.speaking(doing):
            client = self.client  # opened before the lock, which it takes for itself
            with self.locked():
                yield client

    def experiment_id(self, name: str, artifacts: Path) -> str:
        """The experiment to put a run into, created when missing. Its artifact location is absolute and cannot be
        changed, so in the embedded store, whose folder may be moved, the name tells the location."""
        name = f"{name} in {self.folder}" if self.is_default else name
        location = None if self.is_server else artifacts.as_uri()
        self._create_once(lambda: self.client.create_experiment(name, artifact_location=location))
        experiment = self.client.get_experiment_by_name(name)
        if experiment.lifecycle_stage != "active":
            self.client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def model(self, name: str) -> Any:
        """MLflow's RegisteredModel, or None where nothing was registered yet; creates no database."""
        try:
            return self.client.get_registered_model(name) if self.exists else None
        except self._mlflow_exception() as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def create_version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> str:
        """A new version of the model `name`, which is created when missing; its number."""
        self._create_once(lambda: self.client.create_registered_model(name))
        made = self.client.create_model_version(name, source, run_id, tags=dict(tags), await_creation_for=30)
        return str(made.version)

    def log(self, run_id: str, parameters: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, Param

        now_ms = time.time_ns() // 1_000_000
        self.client.log_batch(
            run_id,
            metrics=[Metric(name, value, now_ms, 0) for name, value in metrics.items()],
            params=[Param(name, value) for name, value in parameters.items()],
        )

    def _create_once(self, create: Callable[[], Any]) -> None:
        """Create something that may be there already, or that another process is creating at this moment."""
        try:
            create()
        except self._mlflow_exception() as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @staticmethod
    def _mlflow_exception() -> Any:
        load_mlflow()
        from mlflow.exceptions import MlflowException

        return MlflowException


def load_mlflow() -> Any:
    """Import MLflow (2 s), without its chatter and telemetry."""
    os.environ.update(_ALWAYS)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.store.db import utils

    for chatter in ("alembic", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(chatter).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what `speaking` reports
    utils.MAX_RETRY_COUNT = _DATABASE_ATTEMPTS
    return mlflow


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://***@", text)
