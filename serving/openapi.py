"""What the OpenAPI document says beyond what FastAPI finds in the routes: problems, the limits of this service, keys.

Stage: serving. In: FastAPI's document, `ServiceSettings`. Out: the same, completed. Absent: examples and descriptions,
which stand with routes and schemas.
"""

from collections.abc import Callable, Iterator
from typing import Any

from serving.problems import ProblemDetails
from serving.settings import ServiceSettings

Schema = dict[str, Any]
KEYED = (("/v1/events", "post"), ("/v1/admin/reload", "post"))
KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the service's API key"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, in another header"},
}


def completed(make: Callable[[], Schema], settings: ServiceSettings) -> Callable[[], Schema]:
    """`make` is `FastAPI.openapi`, which keeps the document that it made; it is completed once."""
    done: list[Schema] = []

    def openapi() -> Schema:
        schema = make()
        if not any(schema is one for one in done):
            _complete(schema, settings)
            done[:] = [schema]
        return schema

    return openapi


def _complete(schema: Schema, settings: ServiceSettings) -> None:
    components = schema["components"]
    components["schemas"].setdefault("ProblemDetails", ProblemDetails.model_json_schema())
    for k in _every_k(schema):
        for choice in k["anyOf"]:
            if choice["type"] == "integer":
                choice["maximum"] = settings.max_k
    components["schemas"]["RecommendationRequest"]["properties"]["history"]["maxItems"] = settings.max_history
    components["securitySchemes"] = KEYS
    needed: list[Schema] = [{name: []} for name in KEYS]
    for path, method in KEYED:  # without a key in the settings, {}: this machine needs none
        schema["paths"][path][method]["security"] = needed if settings.api_key else [{}, *needed]


def _every_k(schema: Schema) -> Iterator[Schema]:
    """The schema of each k that a caller may give."""
    for path in schema["paths"].values():
        for operation in path.values():
            yield from (p["schema"] for p in operation.get("parameters", ()) if p["name"] == "k")
    for body in schema["components"]["schemas"].values():
        if body.get("additionalProperties") is False and "k" in body["properties"]:
            yield body["properties"]["k"]
