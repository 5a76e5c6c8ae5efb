"""The server's description for programs: an OpenAPI 3.1 document of the protocol, predictions, health and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowbit import __version__
from lowbit.serving.language import described
from lowbit.serving.protocol import callers
from lowbit.serving.protocol.refusals import NotServed, WrongMethod
from lowbit.serving.protocol.rest_codec import HEADER, MAX_RANK, MOST_TOP
from lowbit.serving.protocol.wire import DATATYPES
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.service import Service
from lowbit.serving.web.asgi import JSON, App, Header, Incoming, Receive, Scope, Send, answer
from lowbit.serving.web.docs_page import page
from lowbit.serving.web.predict import QUERY
from lowbit.serving.web.rest import GET, metadata

Schema = dict[str, Any]
HTML: Header = (b"content-type", b"text/html; charset=utf-8")
SEALED: Header = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
"""The page needs nothing from anywhere, and may not."""

REFUSALS = {
    400: "Names, shapes, types or sizes are wrong; the message says which.",
    401: "An API key is needed.",
    404: "There is no such model, version or variant.",
    408: "The body did not come in time.",
    413: "The body is over the limit.",
    415: "A body of another kind than the model takes.",
    500: "The runtime failed on this request.",
    503: "Busy, stopping or not ready: try again, here or elsewhere.",
    504: "The deadline passed before there was an answer.",
}


class Docs:
    """/openapi.json and /docs as an ASGI application within `rest.Rest`; other paths go to `others`.

    Where keys are asked for, models are not named: the pages themselves ask for none, so that a browser can show them.
    """

    def __init__(self, service: Service, others: App | None = None) -> None:
        """Describes a service."""
        self._service, self._others = service, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request.

        Raises:
            Refusal: of the kind that fits.
        """
        path, method = scope["path"], scope["method"]
        if path not in ("/openapi.json", "/docs"):
            if self._others is None:
                raise NotServed(f"There is nothing at '{path}'.")
            return await self._others(scope, receive, send)
        if method not in GET:
            raise WrongMethod(method, path, GET)
        described = document(
            [] if self._service.settings.api_keys else self._service.models.values(),
            keys=bool(self._service.settings.api_keys),
            language=any(each.language is not None for each in self._service.models.values()),
        )
        incoming = Incoming.of(scope, receive)
        await incoming.discard()
        mark = (callers.REQUEST_ID.encode(), callers.request_id(incoming.headers).encode())
        if path == "/docs":
            await answer(send, 200, [page(described).encode()], [HTML, SEALED, mark])
        else:
            await answer(send, 200, [json.dumps(described, indent=1).encode()], [JSON, mark])
        return None


def document(models: Iterable[Deployment], *, keys: bool, language: bool = False) -> Schema:
    """The document.

    Args:
        models: That are served, with their inputs and outputs; empty to name none.
        keys: Whether API keys are asked for.
        language: Whether a language model is served, named or not.
    """
    models = list(models)
    spoken = described.paths([each.name for each in models if each.language is not None], keys=keys) if language else {}
    paths = {path: {method: _operation(path, method, models, keys)} for path, method in _OPERATIONS}
    tags = {**_TAGS, **({described.TAG: described.ABOUT} if language else {})}
    secured = {
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}, "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lowbit",
            "version": __version__,
            "description": "Models over the Open Inference Protocol V2, and predictions for raw samples. gRPC speaks the same protocol.",
            "x-models": [{**metadata(each, [each.version]), "x-takes": _takes(each)} for each in models],
        },
        "tags": [{"name": name, "description": text} for name, text in tags.items()],
        "paths": {**paths, **spoken},
        "components": {"schemas": {**_SCHEMAS, **(described.SCHEMAS if language else {})}, **(secured if keys else {})},
    }


def _takes(deployment: Deployment) -> str:
    """What a raw sample is."""
    steps = deployment.preprocess
    return "array" if steps is None else steps.kind


_TAGS = {
    "Predict": "Images, text and rows as they are: the bundle's own preprocessing is applied.",
    "Infer": "Open Inference Protocol V2: model-ready tensors, in JSON or binary.",
    "Models": "What is served.",
    "Health": "For balancers and supervisors; no key is needed.",
}
_TENSOR_NAMES = {"name": {"type": "string", "minLength": 1}, "datatype": {"enum": list(DATATYPES)}}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "maxItems": MAX_RANK}
_PLAIN = {"type": ["string", "number", "boolean"]}
_PARAMETERS = {"type": "object", "additionalProperties": _PLAIN}
_ANSWERED: Schema = {
    "model_name": {"type": "string"},
    "model_version": {"type": "string"},
    "id": {"type": "string"},
    "parameters": _PARAMETERS,
    "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Output"}},
}

_SCHEMAS: dict[str, Schema] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Ready": {"type": "object", "properties": {"ready": {"type": "boolean"}, "name": {"type": "string"}}, "required": ["ready"]},
    "Live": {"type": "object", "properties": {"live": {"const": True}}, "required": ["live"]},
    "Server": {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {
            "name": {"const": "lowbit"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
    },
    "TensorFacts": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {**_TENSOR_NAMES, "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}}},
    },
    "Model": {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"const": "lowbit_bundle"},
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/TensorFacts"}},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/TensorFacts"}},
            "parameters": _PARAMETERS,
        },
    },
    "Input": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {**_TENSOR_NAMES, "shape": _SHAPE, "data": {"type": "array"}, "parameters": _PARAMETERS},
        "description": "`data`, flat or nested; or the parameter `binary_data_size` for bytes behind the JSON.",
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Input"}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string", "minLength": 1}, "parameters": _PARAMETERS},
                },
            },
            "parameters": _PARAMETERS,
        },
    },
    "Output": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {**_TENSOR_NAMES, "shape": _SHAPE, "data": {"type": "array"}, "parameters": _PARAMETERS},
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": _ANSWERED,
    },
    "Samples": {
        "description": "One sample, a list of samples, or an object with them. An image is base64, alone or in an object; text is a "
        "string; a row is a list or an object by column.",
        "type": ["object", "array", "string"],
    },
    "Class": {
        "type": "object",
        "required": ["label", "confidence"],
        "properties": {
            "label": {"type": ["integer", "null"]},
            "name": {"type": "string"},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            "top": {"type": "array", "items": {"$ref": "#/components/schemas/Class"}},
        },
    },
    "Boxes": {
        "type": "object",
        "required": ["boxes"],
        "properties": {
            "boxes": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["box", "label", "confidence"],
                    "properties": {
                        "box": {
                            "type": "array",
                            "items": {"type": "number"},
                            "minItems": 4,
                            "maxItems": 4,
                            "description": "x1, y1, x2, y2",
                        },
                        "label": {"type": "integer"},
                        "confidence": {"type": "number"},
                    },
                },
            }
        },
    },
    "Predictions": {
        "type": "object",
        "required": ["model_name", "model_version", "predictions", "parameters"],
        "properties": {
            **_ANSWERED,
            "predictions": {
                "type": "array",
                "description": "One a sample: a class, {value} or {values}, {vector}, {boxes}, or null where only the outputs are known.",
                "items": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/Class"},
                        {"$ref": "#/components/schemas/Boxes"},
                        {"type": "object", "minProperties": 1, "maxProperties": 1},
                        {"type": "null"},
                    ]
                },
            },
        },
    },
}

_KEYLESS = ("/v2/health/live", "/v2/health/ready")
_OPERATIONS: Mapping[tuple[str, str], tuple[str, str, str]] = {
    ("/v1/predict", "post"): ("Predict", "Predict with the only model that is served", "Predictions"),
    ("/v1/models/{name}/predict", "post"): ("Predict", "Predict", "Predictions"),
    ("/v1/models/{name}/versions/{version}/predict", "post"): (
        "Predict",
        "Predict, with a version that must be the one served",
        "Predictions",
    ),
    ("/v2/models/{name}/infer", "post"): ("Infer", "Infer", "InferResponse"),
    ("/v2/models/{name}/versions/{version}/infer", "post"): ("Infer", "Infer, with a version that must be the one served", "InferResponse"),
    ("/v2/models/{name}", "get"): ("Models", "A model's inputs, outputs and variants", "Model"),
    ("/v2/models/{name}/versions/{version}", "get"): ("Models", "The same of a version", "Model"),
    ("/v2", "get"): ("Models", "The server's name, version and extensions", "Server"),
    ("/v2/models/{name}/ready", "get"): ("Health", "Whether a model is ready", "Ready"),
    ("/v2/models/{name}/versions/{version}/ready", "get"): ("Health", "Whether a version is ready", "Ready"),
    ("/v2/health/live", "get"): ("Health", "Whether the server is alive", "Live"),
    ("/v2/health/ready", "get"): ("Health", "Whether requests should come here", "Ready"),
    ("/metrics", "get"): ("Health", "Prometheus metrics", ""),
}
"""Path and method -> tag, summary, what comes back."""


def _operation(path: str, method: str, models: Sequence[Deployment], keys: bool) -> Schema:
    tag, summary, schema = _OPERATIONS[path, method]
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}} if schema else {"text/plain": {}}
    operation: Schema = {
        "tags": [tag],
        "summary": summary,
        "operationId": f"{method}_{path.strip('/').replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": [_in_path(name, models) for name in ("name", "version") if f"{{{name}}}" in path],
        "responses": {"200": {"description": "OK", "content": content}, **_refusals(path, method, keys)},
    }
    if method == "post":
        operation["parameters"] += _HEADERS
        operation["requestBody"] = {"required": True, "content": _SAMPLES if tag == "Predict" else _TENSORS}
    if tag == "Predict":
        operation["parameters"] += [{"name": name, "in": "query", **_QUERIES[name]} for name in QUERY]
    if tag == "Infer":
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        operation["parameters"] += [_BINARY]
    if keys and path not in _KEYLESS:
        operation["security"] = [{"bearer": []}, {"key": []}]
    return operation


def _in_path(name: str, models: Sequence[Deployment]) -> Schema:
    known = [each.name if name == "name" else each.version for each in models]
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", **({"enum": known} if known else {"minLength": 1})}}


def _refusals(path: str, method: str, keys: bool) -> Schema:
    statuses = {404} if "{" in path or path == "/v1/predict" else set()
    statuses |= {400, 408, 413, 415, 500, 503, 504} if method == "post" else set()
    statuses |= {401} if keys and path not in _KEYLESS else set()
    statuses |= {503} if path.endswith("/ready") else set()
    schema = "Ready" if path.endswith("/ready") else "Error"
    refusal = {
        status: {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema if status == 503 else 'Error'}"}}}
        for status in statuses
    }
    return {str(status): {"description": REFUSALS[status], "content": refusal[status]} for status in sorted(statuses)}


_QUERIES: Mapping[str, Schema] = {
    "variant": {"schema": {"type": "string"}, "description": "`chosen`, `full`, or a variant's id."},
    "top": {
        "schema": {"type": "integer", "minimum": 1, "maximum": MOST_TOP, "default": 1},
        "description": "Classes to name for each sample.",
    },
    "outputs": {"schema": {"type": "boolean", "default": True}, "description": "Whether the model's outputs come with the predictions."},
}
_HEADERS: list[Schema] = [
    {
        "name": callers.DEADLINE,
        "in": "header",
        "description": "Milliseconds that the client waits.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9},
    },
    {"name": callers.REQUEST_ID, "in": "header", "description": "Given back, and in the logs.", "schema": {"type": "string"}},
]
_BINARY: Schema = {
    "name": HEADER,
    "in": "header",
    "description": "Bytes of JSON, where raw tensors follow it.",
    "schema": {"type": "integer", "minimum": 0},
}
_RAW = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}}}}
_SAMPLES = {
    "application/json": {"schema": {"$ref": "#/components/schemas/Samples"}},
    "image/png": _RAW,
    "image/jpeg": _RAW,
    "multipart/form-data": _FORM,
    "text/plain": {"schema": {"type": "string"}},
}
_TENSORS = {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}, "application/octet-stream": _RAW}
