"""What the container files promise: that they start what exists, tell no secret and open nothing by themselves.

Stage: tests. In: Dockerfile, docker-compose.yml. Out: pass or fail. Absent: a container engine, which may not be there;
the files are held against the code they start. What Prometheus and Grafana look at: `serving/test_monitoring`.
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
SECRET = re.compile(r"(?i)passw|secret|token|key")


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
    """The services made of this repository's image."""
    return {name: s for name, s in compose()["services"].items() if str(s["image"]).startswith("recsys:")}


# -- what starts ------------------------------------------------------------------------------------------------------


def test_services_are_the_agreed_ones() -> None:
    assert set(compose()["services"]) == {"trainer", "api", "prometheus", "grafana"}
    assert set(ours()) == {"trainer", "api"}


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
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (ROOT / source).is_file(), f"{source}: Docker would make a folder of it"
                assert rest.endswith(":ro")
            else:
                named.add(source)
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


@pytest.mark.parametrize(("name", "port"), [("prometheus", 9090), ("grafana", 3000)])
def test_watchers_listen_where_they_are_published_and_asked(name: str, port: int) -> None:
    service = compose()["services"][name]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]


def test_only_this_machine_reaches_a_port() -> None:
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_whatever_runs_on_is_restarted_and_asked_for_its_health() -> None:
    for name, service in compose()["services"].items():
        once = name == "trainer"
        assert service["restart"] == ("no" if once else "unless-stopped")
        assert ("healthcheck" in service) is not once
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_images_are_pinned() -> None:
    for name, service in compose()["services"].items():
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), name
    assert {s["image"] for s in ours().values()} == {f"recsys:{_version()}"}


def _version() -> str:
    return re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_has_a_default() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    found = 0
    for service in yaml.safe_load(text)["services"].values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                found += 1
                assert REQUIRED.fullmatch(value), f"{name} has a value in the file"
    assert found == 2
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
