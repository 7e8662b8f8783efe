"""What the OpenAPI document says beyond what FastAPI finds in the routes: problems and keys."""

from collections.abc import Callable
from typing import Any

from serving.http.problems import ProblemDetails

Schema = dict[str, Any]
KEYED = (("/v1/events", "post"), ("/v1/admin/reload", "post"))
KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the service's API key"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, in another header"},
}


def completed(make: Callable[[], Schema], keyed: bool) -> Callable[[], Schema]:
    """`make` is `FastAPI.openapi`, which keeps the document that it made and gives it again. `keyed`: writes need a
    key."""

    def openapi() -> Schema:
        schema = make()
        schema["components"]["schemas"].setdefault("ProblemDetails", ProblemDetails.model_json_schema())
        schema["components"]["securitySchemes"] = KEYS
        needed: list[Schema] = [{name: []} for name in KEYS]
        for path, method in KEYED:
            schema["paths"][path][method]["security"] = needed if keyed else [{}, *needed]
        return schema

    return openapi
