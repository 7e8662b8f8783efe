"""What the container files promise: that they start what exists, tell no secret and open nothing by themselves.

Stage: tests. In: Dockerfile, docker-compose.yml. Out: pass or fail. Absent: a container engine, which may not be there;
the files are held against the code they start. What Prometheus and Grafana look at: `serving/test_monitoring`. That the
servers, started with these commands and this environment, work together: `stores/test_compose_environment`.
"""

import json
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_readme import parse_recsys

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
MONITORING = ROOT / "serving" / "monitoring"
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")  # ${NAME:?what to do}: without it, nothing starts
SECRET = re.compile(r"(?i)passw|secret|token|key|cli_auth")
PASSWORD = re.compile(r"(?<=://recsys:).*(?=@)|(?<=password=).*$")  # within an address
OFFICIAL = {"redis": "redis", "postgres": "postgres"}  # images that start as root unless told otherwise; their user


def compose() -> dict[str, Any]:
    """docker-compose.yml with `${NAME:-default}` at its defaults and required variables set to their own name."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text(encoding="utf-8"))
    text = REQUIRED.sub(r"<\1>", text)
    assert "${" not in text, "a variable with neither a default nor a reason"
    return dict(yaml.safe_load(text))


def instructions() -> Iterator[tuple[str, str]]:
    """(instruction, argument) of each line of the Dockerfile, continued lines joined."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, argument = line.partition(" ")
            yield name, argument.strip()


def settings_variables() -> set[str]:
    from recsys.settings import Settings

    prefix = Settings.model_config["env_prefix"]
    return {str(f.validation_alias or f"{prefix}{name.upper()}") for name, f in Settings.model_fields.items()}


def ours() -> dict[str, dict[str, Any]]:
    """The services that run `recsys`."""
    return {name: s for name, s in with_our_image().items() if "entrypoint" not in s}


def with_our_image() -> dict[str, dict[str, Any]]:
    return {name: s for name, s in compose()["services"].items() if str(s["image"]).startswith("recsys:")}


def options(command: list[str]) -> dict[str, str]:
    """`--name=value`, and `--name value`, by name; a flag alone is ""."""
    found: dict[str, str] = {}
    name = ""
    for word in command:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            found[name] = value
        elif name:
            found[name] = word
    return found


# -- what starts ------------------------------------------------------------------------------------------------------


def test_services_are_the_agreed_ones() -> None:
    assert set(compose()["services"]) == {
        *("redis", "postgres", "mlflow", "trainer", "api", "prometheus", "grafana"),
    }
    assert set(ours()) == {"trainer", "api"}
    assert set(with_our_image()) == {"trainer", "api", "mlflow"}


def test_compose_commands_parse_and_start_what_they_should() -> None:
    (entry,) = [json.loads(argument) for name, argument in instructions() if name == "ENTRYPOINT"]
    assert entry == ["recsys"]
    assert parse_recsys(ours()["trainer"]["command"]) == "train"
    assert parse_recsys(ours()["api"]["command"]) == "serve"
    (default,) = [json.loads(argument) for name, argument in instructions() if name == "CMD"]
    assert parse_recsys(default) == "serve"


def test_ours_get_only_known_variables() -> None:
    for service in ours().values():
        assert set(service["environment"]) <= settings_variables()
    python = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    for name, argument in instructions():
        if name == "ENV":
            assert {word.split("=")[0] for word in shlex.split(argument)} <= settings_variables() | python


def test_both_halves_read_the_same_servers() -> None:
    """Each address that the code reads names a service of this file, and the port where that one listens."""
    from recsys.feature_store.config import FeatureStoreConfig
    from recsys.workspace import Workspace

    trainer, api = (ours()[name]["environment"] for name in ("trainer", "api"))
    assert api == {**trainer, "RECSYS_API_KEY": "<RECSYS_API_KEY>"}
    assert set(trainer) == {
        *("RECSYS_HOME", "RECSYS_ONLINE_STORE", "RECSYS_REDIS_CONNECTION", "RECSYS_REGISTRY_PATH"),
        "MLFLOW_TRACKING_URI",
    }
    config = FeatureStoreConfig(
        home=Workspace(Path("/nowhere")).dataset("ml-100k"),
        repo=ROOT / "feature_repo",
        online_store=trainer["RECSYS_ONLINE_STORE"],
        redis_connection=trainer["RECSYS_REDIS_CONNECTION"],
        registry_path=trainer["RECSYS_REGISTRY_PATH"],
    )
    assert (config.online_file, config.registry_file) == (None, None), "something would stay embedded"
    assert trainer["RECSYS_REDIS_CONNECTION"] == "redis:6379,password=<REDIS_PASSWORD>"
    assert trainer["RECSYS_REGISTRY_PATH"] == "postgresql+psycopg://recsys:<POSTGRES_PASSWORD>@postgres:5432/feast"
    postgres, mlflow = (compose()["services"][name] for name in ("postgres", "mlflow"))
    assert postgres["environment"] == {
        "POSTGRES_USER": "recsys",
        "POSTGRES_PASSWORD": "<POSTGRES_PASSWORD>",
        "POSTGRES_DB": "feast",
    }
    backend = mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert backend == trainer["RECSYS_REGISTRY_PATH"].replace("/feast", "/mlflow")
    made = (MONITORING / "databases.sql").read_text(encoding="utf-8")
    assert re.findall(r"^CREATE DATABASE (\w+);$", made, re.MULTILINE) == ["mlflow"]
    assert trainer["MLFLOW_TRACKING_URI"] == f"http://mlflow:{options(mlflow['command'])['port']}"
    for name in ours():
        for server in ("redis", "postgres", "mlflow"):
            assert ours()[name]["depends_on"][server]["condition"] == "service_healthy"
    assert mlflow["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_redis_keeps_what_it_is_given() -> None:
    redis = compose()["services"]["redis"]
    assert redis["command"][0] == "redis-server"
    given = options(redis["command"])
    assert given["requirepass"] == redis["environment"]["REDISCLI_AUTH"] == "<REDIS_PASSWORD>"
    assert (given["appendonly"], given["maxmemory-policy"]) == ("yes", "noeviction")


def test_mlflow_hands_artifacts_through_and_admits_who_asks() -> None:
    """No container of ours gets a 403 for its name. That MLflow understands the command: `stores`."""
    mlflow = compose()["services"]["mlflow"]
    assert mlflow["entrypoint"] == ["mlflow"]
    assert mlflow["command"][0] == "server"
    asked = options(mlflow["command"])
    assert (asked["host"], asked["port"], asked["workers"]) == ("0.0.0.0", "5000", "1")
    assert "serve-artifacts" in asked
    assert f"mlflow:{asked['artifacts-destination']}" in mlflow["volumes"]
    assert mlflow["working_dir"] == asked["artifacts-destination"], "the folder that the image's user can write"
    (owned,) = [argument for _, argument in instructions() if "install -d -o recsys" in argument]
    assert asked["artifacts-destination"] in owned
    hosts = asked["allowed-hosts"].split(",")
    for asking in ("mlflow:5000", "127.0.0.1:5000", "localhost:5000"):
        assert any(fnmatch(asking, host) for host in hosts)
    assert not any(fnmatch("somewhere.example:5000", host) for host in hosts)
    assert mlflow["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert mlflow["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_both_halves_share_one_home() -> None:
    (home,) = {
        word.split("=", 1)[1]
        for name, argument in instructions()
        if name == "ENV"
        for word in shlex.split(argument)
        if word.startswith("RECSYS_HOME=")
    }
    for service in ours().values():
        assert f"home:{home}" in service["volumes"]
        assert service["environment"]["RECSYS_HOME"] == home
    assert ours()["api"]["depends_on"]["trainer"]["condition"] == "service_completed_successfully"


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    document = compose()
    named = set()
    for service in document["services"].values():
        for mount in service["volumes"]:
            retriever, _, rest = mount.partition(":")
            if retriever.startswith("."):
                assert (ROOT / retriever).is_file(), f"{retriever}: Docker would make a folder of it"
                assert rest.endswith(":ro")
            else:
                named.add(retriever)
    assert named == set(document["volumes"])


def test_the_service_listens_where_it_is_published_and_asked() -> None:
    from serving.settings import ServiceSettings

    api = ours()["api"]
    options = dict(word.removeprefix("--").split("=") for word in api["command"][1:])
    port = int(options["port"])
    assert options["host"] == "0.0.0.0", "or nothing outside the container reaches it"
    assert api["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://127.0.0.1:{port}/readyz" in " ".join(api["healthcheck"]["test"])
    assert [int(argument) for name, argument in instructions() if name == "EXPOSE"] == [port]
    assert ServiceSettings.model_fields["port"].default == port
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"api:{port}"]}]
    assert job["metrics_path"] == "/metrics"


def test_a_stopping_service_may_finish_what_it_began() -> None:
    from serving.settings import ServiceSettings

    needed = sum(float(ServiceSettings.model_fields[name].default) for name in ("drain_s", "shutdown_s"))
    assert float(ours()["api"]["stop_grace_period"].removesuffix("s")) > needed, "or Docker kills it in the middle"


@pytest.mark.parametrize(("name", "port"), [("prometheus", 9090), ("grafana", 3000), ("mlflow", 5000)])
def test_pages_listen_where_they_are_published_and_asked(name: str, port: int) -> None:
    service = compose()["services"][name]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]


def test_only_this_machine_reaches_a_port() -> None:
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert "network_mode" not in service
    for name in ("redis", "postgres"):
        assert "ports" not in compose()["services"][name], "nobody outside asks them"


def test_whatever_runs_on_is_restarted_and_asked_for_its_health() -> None:
    for name, service in compose()["services"].items():
        once = name == "trainer"
        assert service["restart"] == ("no" if once else "unless-stopped")
        assert ("healthcheck" in service) is not once
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("user") == OFFICIAL.get(name), "root without capabilities cannot change to another user"


def test_images_are_pinned() -> None:
    for name, service in compose()["services"].items():
        numbers = r"\d+\.\d+" if name == "postgres" else r"v?\d+\.\d+\.\d+"  # PostgreSQL's second is the patch
        assert re.fullmatch(rf"[\w/]+:{numbers}", service["image"]), name
    assert {s["image"] for s in with_our_image().values()} == {f"recsys:{_version()}"}
    assert [name for name, s in with_our_image().items() if "build" in s] == ["trainer"]


def _version() -> str:
    return re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_has_a_default() -> None:
    """Neither in a variable of its own, nor within an address, nor among a command's words."""
    document = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    found = set()
    for service in document["services"].values():
        for name, value in service.get("environment", {}).items():
            secrets = [value] if SECRET.search(name) else PASSWORD.findall(value)
            for secret in secrets:
                assert REQUIRED.fullmatch(secret), f"{name} has a value in the file"
                found.add(name)
        given = options(service["command"]) if isinstance(service.get("command"), list) else {}
        for name, value in given.items():
            assert not re.search("pass|auth", name) or REQUIRED.fullmatch(value), f"--{name} has a value in the file"
    assert found == {
        *("RECSYS_API_KEY", "GF_SECURITY_ADMIN_PASSWORD", "POSTGRES_PASSWORD", "REDISCLI_AUTH"),
        *("RECSYS_REDIS_CONNECTION", "RECSYS_REGISTRY_PATH", "MLFLOW_BACKEND_STORE_URI"),
    }
    assert not SECRET.search(DOCKERFILE.read_text(encoding="utf-8"))


def test_the_example_lists_what_is_asked_for_and_its_copy_stays_out_of_git() -> None:
    asked = set(REQUIRED.findall(COMPOSE.read_text(encoding="utf-8")))
    lines = (MONITORING / "example.env").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == {f"{name}=" for name in asked}
    for ignoring in (".gitignore", ".dockerignore"):
        assert ".env" in (ROOT / ignoring).read_text(encoding="utf-8").splitlines()


def test_grafana_lets_nobody_in_by_itself() -> None:
    environment = compose()["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"] == "<GF_ADMIN_PASSWORD>"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_our_image_runs_as_nobody_special() -> None:
    users = [argument for name, argument in instructions() if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    (base,) = [argument for name, argument in instructions() if name == "FROM"]
    assert re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base)


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    ignored = [
        line.strip().strip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    copied = [word for name, argument in instructions() if name == "COPY" for word in shlex.split(argument)[:-1]]
    copied = [word for word in copied if not word.startswith("--")]
    assert {"recsys", "pipelines", "serving", "feature_repo", "pyproject.toml", "constraints.txt"} <= set(copied)
    for word in copied:
        assert (ROOT / word).exists(), word
        assert not [p for p in ignored if fnmatch(word, p)], f"{word} is in .dockerignore"
    installs = [argument for name, argument in instructions() if name == "RUN" and "pip install" in argument]
    assert any("-c constraints.txt" in argument for argument in installs)
