"""The OpenAPI document holds: Schemathesis makes requests from it, right and wrong ones, and checks every answer."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from serving.app import create_app
from serving.http import requests
from serving.recommending.service import Service
from serving.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = 25  # for each operation and way of making requests
SEED = 20_261_121


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
    assert int(tested[1]) == len(operations(client.get("/openapi.json").json()))
    assert service.metrics.as_dict()["requests"] > EXAMPLES


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    paths = document["paths"].items()
    return {(path, method): operation for path, own in paths for method, operation in own.items()}


def test_every_operation_is_described_and_its_examples_are_valid(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "ProblemDetails" in document["components"]["schemas"]
    for (path, _method), operation in operations(document).items():
        assert operation["description"], path
        assert {"422", "500", "503"} <= set(operation["responses"]) or not path.startswith("/v1/"), path
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description") or parameter["schema"].get("description"), f"{path} {parameter}"
        if "requestBody" in operation:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            model, schema = getattr(requests, name), document["components"]["schemas"][name]
            for example in schema["examples"]:
                assert model.model_validate(example).model_dump(exclude_unset=True) == example


def test_writes_need_a_key_where_there_is_one(
    client: httpx.Client, settings: ServiceSettings, service: Service
) -> None:
    keyed = settings.model_copy(update={"api_key": SecretStr("0123456789abcdef")})
    document = create_app(keyed, service).openapi()
    needing = {path for (path, _), operation in operations(document).items() if "security" in operation}
    assert needing == {"/v1/events", "/v1/admin/reload"}
    assert document["paths"]["/v1/events"]["post"]["security"] == [{"bearer": []}]
    assert "security" not in client.get("/openapi.json").json()["paths"]["/v1/events"]["post"]
