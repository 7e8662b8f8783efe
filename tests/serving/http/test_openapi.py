"""The OpenAPI document holds: Schemathesis makes requests from it, right and wrong ones, and checks every answer."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.serving.serving_client import connected

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = 25  # for each operation and way of making requests
SEED = 20_261_121
METHODS = ("get", "post")


def test_every_answer_is_as_documented(client: httpx.Client, service: Service, tmp_path: Path) -> None:
    """Every check that Schemathesis has, but that one of them is told apart by meaning (`openapi_checks`)."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{client.base_url}/openapi.json"]
    command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", str(SEED)]
    command += ["--generation-database", "none", "--no-color", "--request-timeout", "30"]
    modules = {"SCHEMATHESIS_HOOKS": "tests.serving.http.openapi_checks", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **modules}, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stdout[-8_000:] + run.stderr[-2_000:]
    tested = re.search(r"Tested: (\d+)", run.stdout)
    assert tested is not None
    assert int(tested[1]) == len(operations(client))
    assert service.metrics.as_dict()["requests"] > EXAMPLES


def operations(client: httpx.Client) -> list[tuple[str, str, dict[str, Any]]]:
    paths = client.get("/openapi.json").json()["paths"]
    return [(path, method, operation) for path, own in paths.items() for method, operation in own.items()]


def test_every_operation_is_described_with_an_example(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for path, method, operation in operations(client):
        assert method in METHODS
        assert operation["description"], path
        for parameter in operation.get("parameters", ()):
            where = f"{path} {parameter['name']}"
            assert parameter.get("description") or parameter["schema"].get("description"), where
            shown = parameter.get("example", parameter["schema"].get("examples", parameter.get("examples")))
            assert shown is not None or parameter["schema"].get("default") in (False,) or "cursor" in where, where
        content = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        success = min(status for status in operation["responses"] if status.startswith("2"))
        content.append(operation["responses"][success]["content"])
        for one in content:
            if "application/json" in one:
                name = one["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert schemas[name]["examples"], name


def test_errors_are_documented(client: httpx.Client) -> None:
    found = {(path, method): set(operation["responses"]) for path, method, operation in operations(client)}
    for (path, _method), statuses in found.items():
        if path.startswith("/v1/"):
            assert {"422", "429", "503"} <= statuses, path
    assert "404" in found["/v1/items/{item_id}", "get"]
    assert "404" in found["/v1/items/{item_id}/similar", "get"]
    for path in ("/v1/events", "/v1/recommendations", "/v1/users/recommendations"):
        assert {"400", "413"} <= found[path, "post"], path
    for path in ("/v1/events", "/v1/admin/reload"):
        assert "401" in found[path, "post"], path


def test_writes_need_a_key_where_there_is_one(settings: ServiceSettings, service: Service) -> None:
    keyed = settings.model_copy(update={"api_key": SecretStr("0123456789abcdef")})
    with connected(keyed, service) as client:
        api = client.get("/openapi.json").json()
    assert api["paths"]["/v1/events"]["post"]["security"] == [{"bearer": []}, {"api_key": []}]
    assert set(api["components"]["securitySchemes"]) == {"bearer", "api_key"}


def test_on_this_machine_keys_are_optional(client: httpx.Client) -> None:
    security = client.get("/openapi.json").json()["paths"]["/v1/events"]["post"]["security"]
    assert security == [{}, {"bearer": []}, {"api_key": []}]
