"""docker-compose.yml without containers: its servers with its commands, and its environment, on this machine.

Redis with the password that is asked for, PostgreSQL with the two databases, MLflow's own server with artifacts handed
through it. Only what containers bring is replaced: names of machines, ports, folders. Then training and the service get
the environment that the file gives them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys.registry import Registry, model_name_for
from recsys.settings import read_settings
from serving.observability.metrics import Metrics
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.conftest import TrainedHome, use_small_settings
from tests.serving.serving_client import connected
from tests.test_containers import DEPLOY, compose, options

from .native import PostgresServer, RedisServer, _Server, connections_closed, free_port

SECRETS = {
    "<REDIS_PASSWORD>": "ofredis4711",
    "<POSTGRES_PASSWORD>": "ofpostgres4711",
    "<RECSYS_API_KEY>": "0123456789abcdef01",
}


class ComposedRedis(RedisServer):
    """With the command of the file."""

    def start(self) -> None:
        service = compose()["services"]["redis"]
        shell, flag, script = service["command"]
        assert "dir /data" in script
        here = script.replace("dir /data", rf"dir {self.folder}\nport {self.port}\nbind 127.0.0.1")
        secrets = {name: filled(value) for name, value in service["environment"].items()}
        self._run([shell, flag, here], self._answers, env={**os.environ, **secrets})

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.exceptions.ConnectionError:  # not listening yet
            return False

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, password=SECRETS["<REDIS_PASSWORD>"])


class ComposedMlflow(_Server):
    """With the command and the environment of the file."""

    def __init__(self, postgres: PostgresServer) -> None:
        super().__init__()
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="recsys-mlflow-")), free_port()
        self._postgres = postgres
        self.artifacts = self.folder / "artifacts"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.artifacts.mkdir()
        service = compose()["services"]["mlflow"]
        program = Path(sys.executable).with_name(service["entrypoint"][0])
        folder = options(service["command"])["artifacts-destination"]
        here = {"--port=5000": f"--port={self.port}", "--host=0.0.0.0": "--host=127.0.0.1"}
        here[f"--artifacts-destination={folder}"] = f"--artifacts-destination={self.artifacts}"
        command = [here.pop(word, word) for word in service["command"]]
        assert not here, "the file's command has changed"
        own = {name: reachable(value, self._postgres) for name, value in service["environment"].items()}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self._run([str(program), *command], self._answers, env={**kept, **own}, start_new_session=True)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, how)  # the server and its worker
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


def filled(text: str) -> str:
    for name, value in SECRETS.items():
        text = text.replace(name, value)
    return text


def reachable(text: str, postgres: PostgresServer) -> str:
    """An address of the file, with its password, on this machine."""
    return filled(text).replace("@postgres:5432/", f"@127.0.0.1:{postgres.port}/")


@dataclass(frozen=True)
class Composed:
    home: TrainedHome
    redis: ComposedRedis
    mlflow: ComposedMlflow
    postgres: PostgresServer

    def environment(self, service: str) -> dict[str, str]:
        """What the file gives a service of ours, here; the home is named with each command instead."""
        given: dict[str, str] = dict(compose()["services"][service]["environment"])
        assert given.pop("RECSYS_HOME")
        for name, value in given.items():
            here = reachable(value, self.postgres).replace("redis:6379", f"127.0.0.1:{self.redis.port}")
            given[name] = here.replace("http://mlflow:5000", self.mlflow.url)
        return given

    def count(self, database: str, table: str) -> int:
        with psycopg.connect(f"{self._address}/{database}") as connection:
            (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
            return int(found)

    @property
    def _address(self) -> str:
        return f"postgresql://recsys:{SECRETS['<POSTGRES_PASSWORD>']}@127.0.0.1:{self.postgres.port}"


@pytest.fixture(scope="module")
def composed(
    postgres_server: PostgresServer, world_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Composed]:
    """The servers, and a home trained against them as the one-shot trainer does."""
    make_databases(postgres_server)
    home = TrainedHome(tmp_path_factory.mktemp("composed") / "home", world_files)
    redis_server, mlflow = ComposedRedis(), ComposedMlflow(postgres_server)
    made = Composed(home, redis_server, mlflow, postgres_server)
    try:
        redis_server.start()
        mlflow.start()
        with connections_closed(), pytest.MonkeyPatch.context() as patch:
            use_small_settings(patch)
            for name, value in made.environment("trainer").items():
                patch.setenv(name, value)
            assert home.run("data", "--data-dir", str(world_files), "--dataset", home.name) == 0
            assert home.run("train") == 0
            yield made
    finally:
        for server in (mlflow, redis_server):
            server.stop()
            shutil.rmtree(server.folder, ignore_errors=True)


def make_databases(postgres: PostgresServer) -> None:
    """As the image of PostgreSQL does with a new volume: the user, its database, then our file."""
    given = compose()["services"]["postgres"]["environment"]
    user, first = given["POSTGRES_USER"], given["POSTGRES_DB"]
    with psycopg.connect(postgres._address("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{filled(given['POSTGRES_PASSWORD'])}'")
        connection.execute(f"CREATE DATABASE {first} OWNER {user}")
    own = f"postgresql://{user}:{filled(given['POSTGRES_PASSWORD'])}@127.0.0.1:{postgres.port}/{first}"
    with psycopg.connect(own, autocommit=True) as connection:
        for line in (DEPLOY / "databases.sql").read_text(encoding="utf-8").splitlines():
            if not line.startswith("--"):  # a statement a line, as psql sends them
                connection.execute(line)


@pytest.fixture
def client(composed: Composed, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    for name, value in composed.environment("api").items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(composed.home.dataset.bundles)  # as on another machine: the model is fetched
    settings = ServiceSettings.build(read_settings(composed.home.root), composed.home.dataset, budget_ms=60_000.0)
    with connected(settings, Service.load(settings, Metrics())) as client:
        yield client


def test_training_left_everything_on_the_servers(composed: Composed) -> None:
    assert [path.name for path in composed.home.root.rglob("*.db")] == []
    assert composed.count("feast", "feature_views") == 2
    assert composed.count("mlflow", "model_versions") == 1
    assert composed.count("mlflow", "registered_model_aliases") >= 1
    assert len(list(composed.mlflow.artifacts.rglob("bundle/bundle.json"))) == 1
    assert not (composed.home.root / "mlflow" / "artifacts").exists(), "artifacts went past the server"
    with composed.redis.client() as connection:
        assert connection.dbsize() == len(composed.home.users)


def test_no_secret_is_written_anywhere(composed: Composed) -> None:
    """MLflow asks for no password, and bundles travel."""
    with psycopg.connect(f"{composed._address}/mlflow") as connection:
        told = dict(connection.execute("SELECT key, value FROM params").fetchall())
    assert told["feature_store"].startswith("redis 127.0.0.1:")
    files = [path for root in (composed.home.root, composed.mlflow.artifacts) for path in root.rglob("*")]
    assert len([path for path in files if path.name == "bundle.json"]) >= 2
    for secret in SECRETS.values():
        assert secret not in "".join(told.values())
        assert [path for path in files if path.is_file() and secret.encode() in path.read_bytes()] == []


def test_the_service_fetches_its_model_from_the_server(composed: Composed, client: httpx.Client) -> None:
    user = int(composed.home.events["user_id"].iloc[0])
    known = int((composed.home.events["user_id"] == user).sum())
    card = client.get("/v1/model").json()
    assert card["version"] == 1
    assert [folder.name for folder in composed.home.dataset.bundles.iterdir()] == [card["bundle_id"]]
    answer = client.get(f"/v1/users/{user}/recommendations").json()
    assert (answer["cold_start"], answer["degraded"], len(answer["items"])) == (False, [], 10)
    event = {"user_id": user, "item_id": answer["items"][0]["item_id"], "rating": 4.5}
    assert client.post("/v1/events", json=event).status_code == 401, "the file asks for a key"
    key = {"Authorization": f"Bearer {SECRETS['<RECSYS_API_KEY>']}"}
    assert client.post("/v1/events", json=event, headers=key).status_code == 201
    assert client.get(f"/v1/users/{user}/history").json()["n_events"] == known + 1
    again = client.get(f"/v1/users/{user}/recommendations").json()
    assert event["item_id"] not in [item["item_id"] for item in again["items"]]
    assert client.post("/v1/admin/reload", headers=key).json()["outcome"] == "unchanged"


def test_the_registry_works_through_the_server(composed: Composed, tmp_path: Path) -> None:
    """Fetched by HTTP into an empty folder, checked against what was registered, promoted and rolled back."""
    settings = read_settings(composed.home.root)
    assert settings.mlflow_tracking_uri == composed.mlflow.url
    registry = Registry(settings.mlflow_tracking_uri, tmp_path / "elsewhere", model_name_for(composed.home.name))
    champion = registry.resolve("champion")
    fetched = registry.download("champion", tmp_path / "copies")
    assert fetched.name == champion.bundle_id
    second = registry.register(fetched)
    assert registry.resolve("challenger").version == second.version == champion.version + 1
    assert registry.promote(second.version).aliases == ("champion",)
    assert registry.rollback().version == champion.version
    assert not (tmp_path / "elsewhere" / "artifacts").exists()


def test_servers_refuse_whom_they_should(composed: Composed) -> None:
    once = Retry(NoBackoff(), 0)
    with (
        redis.Redis(port=composed.redis.port, retry=once) as new_user,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        new_user.ping()
    url = f"{composed.mlflow.url}/api/2.0/mlflow/experiments/search?max_results=1"
    hosts = {"mlflow:5000": 200, "127.0.0.1:5000": 200, "localhost:5000": 200, "pages.example:5000": 403}
    found = {host: httpx.get(url, headers={"Host": host}, trust_env=False).status_code for host in hosts}
    assert found == hosts
