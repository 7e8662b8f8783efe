"""What the container files promise: they start what exists, tell no secret, open nothing by themselves.

No container engine is needed. `stores/test_compose_environment` starts the same servers natively.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stores.native import binary
from tests.test_readme import parse_recsys

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DEPLOY = ROOT / "serving" / "deploy"
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")  # ${NAME:?what to do}: without it, nothing starts
SECRET = re.compile(r"(?i)passw|secret|token|key|cli_auth")
PASSWORD = re.compile(r"(?<=://recsys:).*(?=@)|(?<=password=).*$")  # within an address
OURS = ("trainer", "retrainer", "api")


def compose() -> dict[str, Any]:
    """docker-compose.yml with `${NAME:-default}` at its defaults and required variables set to their own name."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text(encoding="utf-8"))
    text = REQUIRED.sub(r"<\1>", text)
    assert "${" not in text, "a variable with neither a default nor a reason"
    return dict(yaml.safe_load(text.replace("$$", "$")))


SERVICES: dict[str, dict[str, Any]] = compose()["services"]


def instructions() -> Iterator[tuple[str, str]]:
    """(instruction, argument) of each line of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, argument = line.partition(" ")
            yield name, argument.strip()


def options(command: list[str]) -> dict[str, str]:
    """`--name=value` by name; a flag alone is ""."""
    return dict(word.removeprefix("--").partition("=")[::2] for word in command if word.startswith("--"))


def test_commands_of_compose_and_of_the_image_parse() -> None:
    (entry,) = [json.loads(argument) for name, argument in instructions() if name == "ENTRYPOINT"]
    assert entry == ["recsys"]
    assert [parse_recsys(SERVICES[name]["command"]) for name in OURS] == ["train", "retrain", "serve"]
    (default,) = [json.loads(argument) for name, argument in instructions() if name == "CMD"]
    assert parse_recsys(default) == "serve"


def test_training_and_serving_read_the_same_servers_by_variables_that_exist() -> None:
    from recsys.settings import Settings

    trainer, retrainer, api = (SERVICES[name]["environment"] for name in OURS)
    assert retrainer == trainer
    assert api == {**trainer, "RECSYS_API_KEY": "<RECSYS_API_KEY>"}
    assert {str(f.validation_alias or f"RECSYS_{name.upper()}") for name, f in Settings.model_fields.items()} >= set(
        api
    )
    for variable, host, database in (
        ("RECSYS_REGISTRY_PATH", "postgres:5432", "feast"),
        ("RECSYS_EVENTS_URL", "postgres:5432", "events"),
    ):
        assert trainer[variable] == f"postgresql+psycopg://recsys:<POSTGRES_PASSWORD>@{host}/{database}"
    assert trainer["RECSYS_REDIS_CONNECTION"] == "redis:6379,password=<REDIS_PASSWORD>"
    assert trainer["MLFLOW_TRACKING_URI"] == f"http://mlflow:{options(SERVICES['mlflow']['command'])['port']}"
    backend = SERVICES["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert backend == trainer["RECSYS_REGISTRY_PATH"].replace("/feast", "/mlflow")
    made = re.findall(r"^CREATE DATABASE (\w+);$", (DEPLOY / "databases.sql").read_text(encoding="utf-8"), re.MULTILINE)
    assert {SERVICES["postgres"]["environment"]["POSTGRES_DB"], *made} == {"feast", "mlflow", "events"}


def test_ours_wait_for_the_servers_and_share_one_home() -> None:
    for name in OURS:
        for server in ("redis", "postgres", "mlflow"):
            assert SERVICES[name]["depends_on"][server] == {"condition": "service_healthy"}
        assert f"home:{SERVICES[name]['environment']['RECSYS_HOME']}" in SERVICES[name]["volumes"]
    for name in ("api", "retrainer"):
        assert SERVICES[name]["depends_on"]["trainer"] == {"condition": "service_completed_successfully"}
    assert SERVICES["api"]["deploy"]["replicas"] == 2


def test_mlflow_admits_who_asks_and_keeps_artifacts_where_it_can_write() -> None:
    mlflow = SERVICES["mlflow"]
    given = options(mlflow["command"])
    assert f"mlflow:{given['artifacts-destination']}" in mlflow["volumes"]
    (owned,) = [argument for _, argument in instructions() if "install -d -o recsys" in argument]
    assert given["artifacts-destination"] in owned
    hosts = given["allowed-hosts"].split(",")
    for asking in ("mlflow:5000", "127.0.0.1:5000", "localhost:5000"):
        assert any(fnmatch(asking, host) for host in hosts)
    assert not any(fnmatch("somewhere.example:5000", host) for host in hosts)


def test_mounted_files_exist_and_are_read_only() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service["volumes"] if mount.startswith(".")]
    for mount in mounts:
        assert (ROOT / mount.partition(":")[0]).is_file(), f"{mount}: Docker would make a folder of it"
        assert mount.endswith(":ro")


def test_the_service_is_reached_through_nginx_alone() -> None:
    from serving.settings import ServiceSettings

    port = int(options(SERVICES["api"]["command"])["port"])
    assert ServiceSettings.model_fields["port"].default == port
    assert "ports" not in SERVICES["api"]
    assert SERVICES["nginx"]["ports"] == ["127.0.0.1:8000:8080"]
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert f"server api:{port} " in text
    assert "listen 8080;" in text


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    program = str(binary("nginx", "nginx-light"))
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8").replace("server api:", "server 127.0.0.1:")
    (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
    command = [program, "-t", "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run([*command, "-g", f"pid {tmp_path}/pid;"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_hardened_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("no" if name == "trainer" else "unless-stopped")
    assert ("healthcheck" in service) is (name not in ("trainer", "retrainer")), "who answers says whether it can"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert {"mem_limit", "cpus", "pids_limit"} <= set(service)
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    numbers = r"\d+\.\d+" if name == "postgres" else r"v?\d+\.\d+\.\d+"  # PostgreSQL's second is the patch
    assert re.fullmatch(rf"[\w/-]+:{numbers}", service["image"])


def test_stores_are_reached_by_ours_alone() -> None:
    inside = {name for name, service in SERVICES.items() if "stores" in service["networks"]}
    assert inside == {"redis", "postgres", "mlflow", *OURS}
    assert compose()["networks"]["stores"] == {"internal": True}
    for name in ("redis", "postgres"):
        assert SERVICES[name]["networks"] == ["stores"]
        assert "ports" not in SERVICES[name]


def test_no_secret_has_a_default_or_stands_in_a_command() -> None:
    document = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    secrets = set()
    for service in document["services"].values():
        for name, value in service.get("environment", {}).items():
            for secret in [value] if SECRET.search(name) else PASSWORD.findall(value):
                assert REQUIRED.fullmatch(secret), f"{name} has a value in the file"
                secrets.add(name)
        assert not REQUIRED.search(" ".join(service.get("command", []))), "process lists show commands"
    assert secrets == {
        *("RECSYS_API_KEY", "GF_SECURITY_ADMIN_PASSWORD", "POSTGRES_PASSWORD", "REDISCLI_AUTH"),
        *("RECSYS_REDIS_CONNECTION", "RECSYS_REGISTRY_PATH", "RECSYS_EVENTS_URL", "MLFLOW_BACKEND_STORE_URI"),
    }
    assert not SECRET.search((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_USERS_ALLOW_SIGN_UP"] == grafana["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_the_example_lists_what_is_asked_for_and_its_copy_stays_out_of_git() -> None:
    required = set(REQUIRED.findall(COMPOSE.read_text(encoding="utf-8")))
    lines = (DEPLOY / "example.env").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == {f"{name}=" for name in required}
    for ignoring in (".gitignore", ".dockerignore"):
        assert ".env" in (ROOT / ignoring).read_text(encoding="utf-8").splitlines()


def test_our_image_is_pinned_and_runs_as_nobody_special() -> None:
    version = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert {SERVICES[name]["image"] for name in (*OURS, "mlflow")} == {f"recsys:{version}"}
    users = [argument for name, argument in instructions() if name == "USER"]
    assert users[-1] not in ("root", "0")


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = [line.strip().strip("/") for line in lines if line.strip() and not line.startswith("#")]
    copied = [word for name, argument in instructions() if name == "COPY" for word in shlex.split(argument)[:-1]]
    assert {"recsys", "pipelines", "serving", "feature_repo", "pyproject.toml", "constraints.txt"} <= set(copied)
    for word in copied:
        assert (ROOT / word).exists(), word
        assert not [pattern for pattern in ignored if fnmatch(word, pattern)], f"{word} is in .dockerignore"
