"""The server's description for people: one page of HTML out of the OpenAPI document; no scripts, nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from lowbit.serving.language import described

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --back: #fff; --box: #f5f7f9; --get: #1f6f54; --post: #8a4b08;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #2c3542; --back: #12171e; --box: #1a212b; --get: #6fcfa8; --post: #f0b06a }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 4rem; font: 16px/1.5 system-ui, sans-serif }
body { color: var(--ink); background: var(--back) }
h1 { margin: 0; font-size: 1.7rem }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.25rem }
h3 { margin: .75rem 0 .25rem; font-size: .85rem; color: var(--soft) }
p { margin: .25rem 0 1rem; max-width: 44rem }
a { color: inherit }
.soft, td small { color: var(--soft) }
details { border: 1px solid var(--line); border-radius: 8px; margin: .5rem 0; background: var(--box) }
summary { cursor: pointer; padding: .6rem .75rem; overflow-wrap: anywhere }
summary > span { display: block; color: var(--soft); font-size: .9rem; padding-left: 3.6rem }
summary b { display: inline-block; width: 3.4rem; font: 700 .8rem ui-monospace, monospace }
.get { color: var(--get) }
.post { color: var(--post) }
.inside { padding: 0 .75rem .75rem }
code, pre { font: .85rem/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
pre { margin: 0; padding: .6rem .75rem; white-space: pre-wrap }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px }
table { width: 100%; border-collapse: collapse; font-size: .92rem }
td { border-top: 1px solid var(--line); padding: .35rem .5rem .35rem 0; vertical-align: top }
td:first-child { width: 34%; overflow-wrap: anywhere }
"""


def page(document: Mapping[str, Any]) -> str:
    """The page."""
    info = document["info"]
    sections = "".join(_section(document, tag) for tag in document["tags"])
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}: the interface</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f'For programs: <a href="/openapi.json">openapi.json</a>.</p>{_models(info["x-models"])}{sections}</html>'
    )


def _models(models: list[Mapping[str, Any]]) -> str:
    if not models:
        return ""
    rows = "".join(
        f"<tr><td><b>{escape(each['name'])}</b><br><small>version {escape(', '.join(each['versions']))}</small></td>"
        f"<td>{_tensors('in', each['inputs'])}{_tensors('out', each['outputs'])}"
        f"<small>{escape(str(each['parameters'].get('variants', '')))}</small></td></tr>"
        for each in models
    )
    return f"<h2>Served</h2><table>{rows}</table>"


def _tensors(side: str, tensors: list[Mapping[str, Any]]) -> str:
    return "".join(
        f"<div><small>{side}</small> <code>{escape(each['name'])} {each['datatype']} "
        f"[{', '.join('any' if dim < 0 else str(dim) for dim in each['shape'])}]</code></div>"
        for each in tensors
    )


def _section(document: Mapping[str, Any], tag: Mapping[str, str]) -> str:
    listed = [
        _operation(document, path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if tag["name"] in operation["tags"]
    ]
    return f'<h2>{escape(tag["name"])}</h2><p class="soft">{escape(tag["description"])}</p>{"".join(listed)}'


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    given = "".join(
        f"<tr><td><code>{escape(each['name'])}</code><br><small>{each['in']}{', required' if each.get('required') else ''}</small></td>"
        f"<td>{_coded(each.get('description', ''))} <small>{escape(_allowed(each['schema']))}</small></td></tr>"
        for each in operation["parameters"]
    )
    bodies = ", ".join(f"<code>{escape(kind)}</code>" for kind in operation.get("requestBody", {}).get("content", {}))
    back = "".join(
        f"<tr><td><code>{status}</code></td><td>{escape(each['description'])}{_shape(document, each) if status == '200' else ''}</td></tr>"
        for status, each in operation["responses"].items()
    )
    head = f'<b class="{method}">{method.upper()}</b> <code>{escape(path)}</code><span>{escape(operation["summary"])}</span>'
    example = _example(path, method, document["info"]["x-models"], key="security" in operation)
    return (
        f'<details><summary>{head}</summary><div class="inside"><h3>Try it</h3><pre>{escape(example)}</pre>'
        + (f"<h3>Given</h3><table>{given}</table>" if given else "")
        + (f"<h3>Body</h3><p>{bodies}</p>" if bodies else "")
        + f"<h3>Comes back</h3><table>{back}</table></div></details>"
    )


def _coded(text: str) -> str:
    """Text with `words` of code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _allowed(schema: Mapping[str, Any]) -> str:
    kind = schema["type"]
    if "enum" in schema:
        return ", ".join(schema["enum"])
    limits = [
        f"{word} {schema[key]:g}" for key, word in (("exclusiveMinimum", "above"), ("minimum", "from"), ("maximum", "to")) if key in schema
    ]
    return " ".join([kind, *limits])


def _shape(document: Mapping[str, Any], response: Mapping[str, Any]) -> str:
    """The fields that come back."""
    reference = response["content"].get("application/json", {}).get("schema", {}).get("$ref", "")
    fields = document["components"]["schemas"].get(reference.rpartition("/")[2], {}).get("properties", {})
    return f"<br><small>{', '.join(map(escape, fields))}</small>" if fields else ""


def _example(path: str, method: str, models: list[Mapping[str, Any]], *, key: bool) -> str:
    """A line of shell that asks the first model that is served."""
    first: Mapping[str, Any] = models[0] if models else {"name": "MODEL", "versions": ["VERSION"], "inputs": [], "x-takes": "image"}
    address = f"http://127.0.0.1:8000{path}".replace("{name}", first["name"]).replace("{version}", first["versions"][0])
    curl = 'curl -H "X-API-Key: KEY"' if key else "curl"
    if method == "get":
        return f"{curl} {address}"
    if (said := described.EXAMPLES.get(path)) is not None:
        return f"{curl} -d '{said}' {address}"
    if path.startswith("/v1"):
        return f"{curl} {_SAMPLES[first['x-takes']]} {address}"
    tensors = first["inputs"] or [{"name": "INPUT", "datatype": "FP32", "shape": [-1, 2]}]
    inputs = [{**each, "shape": [max(dim, 1) for dim in each["shape"]], "data": ["..."]} for each in tensors]
    return f"{curl} -d '{json.dumps({'inputs': inputs})}' {address}"


_SAMPLES = {
    "image": "-H 'Content-Type: image/jpeg' --data-binary @photo.jpg",
    "text": "-H 'Content-Type: text/plain' -d 'a text'",
    "array": "-d '[[0.5, 1.5]]'",
}
