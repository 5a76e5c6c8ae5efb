"""OpenAI's addresses in the server's OpenAPI document, where a language model is served."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TAG, ABOUT = "Language", "OpenAI's protocol, for language models; any client of it will do."
_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer", "minimum": 1}
_USAGE = {name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
_COMMON: Schema = {
    "model": {"type": "string", "description": "NAME or NAME@VERSION; may be left out where one language model is served."},
    "temperature": {**_NUMBER, "minimum": 0, "maximum": 2, "default": 1},
    "top_p": {**_NUMBER, "exclusiveMinimum": 0, "maximum": 1, "default": 1},
    "top_k": {"type": "integer", "minimum": 0},
    "seed": {"type": "integer"},
    "n": {**_WHOLE, "maximum": 128, "default": 1},
    "stop": {"description": "A text, or up to 16.", "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "stream": {"type": "boolean", "default": False, "description": "Server-sent events."},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": _WHOLE,
    "ignore_eos": {"type": "boolean"},
    "user": {"type": "string", "description": "Stays on one side of a rollout."},
    "variant": {"type": "string", "description": "`chosen`, `full`, or a variant's id."},
}
_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array"}], "description": "A text, token ids, or several of either."}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"type": "string", "minLength": 1}, "content": {"type": "string"}},
    },
}
_MODEL: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": {"type": "string"}},
}
SCHEMAS: dict[str, Schema] = {
    "LanguageModel": _MODEL,
    "LanguageModels": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": "#/components/schemas/LanguageModel"}}},
    },
    "CompletionRequest": {
        "type": "object",
        "required": ["prompt"],
        "properties": {**_COMMON, "prompt": _TEXTS, "logprobs": {"type": "integer", "minimum": 0, "maximum": 1}},
    },
    "ChatRequest": {
        "type": "object",
        "required": ["messages"],
        "properties": {**_COMMON, "messages": _MESSAGES, "max_completion_tokens": _WHOLE, "logprobs": {"type": "boolean"}},
    },
    "Answers": {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"enum": ["text_completion", "chat.completion"]},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "system_fingerprint": {"type": "string"},
            "choices": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["index", "finish_reason"],
                    "properties": {"index": {"type": "integer"}, "finish_reason": {"enum": ["stop", "length"]}},
                },
            },
            "usage": {"type": "object", "required": list(_USAGE), "properties": _USAGE},
        },
    },
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
}
EXAMPLES = {
    "/v1/completions": '{"prompt": "The sea is", "max_tokens": 20}',
    "/v1/chat/completions": '{"messages": [{"role": "user", "content": "Why is the sea blue?"}]}',
}
"""Bodies that may be sent to a server with one language model."""
_WHY = {
    400: "A field is wrong, or the prompt leaves no room.",
    401: "An API key is needed.",
    404: "There is no such model, version or variant.",
    408: "The body did not come in time.",
    413: "The body is over the limit.",
    429: "As many answers wait as may.",
    500: "The engine failed on this answer.",
    503: "Stopping, or too many requests: try again.",
    504: "The deadline passed.",
}


def paths(names: list[str], *, keys: bool) -> Schema:
    """The addresses.

    Args:
        names: Of language models; empty to name none.
        keys: Whether API keys are asked for.
    """
    posted = (400, 404, 408, 413, 429, 500, 503, 504)
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", **({"enum": names} if names else {"minLength": 1})},
    }
    return {
        "/v1/models": {"get": _operation("Language models", "listLanguageModels", "LanguageModels", (), keys)},
        "/v1/models/{name}": {"get": _operation("One of them", "languageModel", "LanguageModel", (404,), keys) | {"parameters": [name]}},
        "/v1/completions": {"post": _operation("Continue texts", "complete", "Answers", posted, keys, "CompletionRequest")},
        "/v1/chat/completions": {"post": _operation("Answer a chat", "chat", "Answers", posted, keys, "ChatRequest")},
    }


def _operation(summary: str, name: str, gives: str, refused: tuple[int, ...], keys: bool, takes: str = "") -> Schema:
    content: Schema = {"application/json": {"schema": _named(gives)}}
    if takes:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    refusals = {
        str(status): {"description": _WHY[status], "content": {"application/json": {"schema": _named("OpenAIError")}}}
        for status in (*refused, *((401,) if keys else ()))
    }
    operation: Schema = {
        "tags": [TAG],
        "summary": summary,
        "operationId": name,
        "parameters": [],
        "responses": {"200": {"description": "OK", "content": content}, **dict(sorted(refusals.items()))},
    }
    if takes:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _named(takes)}}}
    if keys:
        operation["security"] = [{"bearer": []}, {"key": []}]
    return operation


def _named(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}
