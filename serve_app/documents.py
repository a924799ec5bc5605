"""The OpenAPI document of one model and the page that shows it. The page is whole in itself: nothing is fetched."""

from __future__ import annotations

import html
import json
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from serve_app.protocol import Limits, PredictRequest, TextAnswer

REFUSALS = {
    400: "The body is not JSON, or not all of it came.",
    404: "No such path.",
    405: "Wrong method.",
    413: "The body is too large, or has too many texts.",
    415: "The body is not declared as JSON.",
    422: "The JSON is not a request: wrong types, unknown keys, empty text.",
    500: "The model failed on this request.",
    503: "Too many requests wait. Try again after the seconds in Retry-After.",
}


def openapi(name: str, limits: Limits) -> dict[str, Any]:
    """OpenAPI 3.1 document of the application that serves `name`."""
    schemas = {model.__name__: _schema(model) for model in (PredictRequest, TextAnswer)}
    schemas["Error"] = {
        "type": "object",
        "properties": {
            "error": {"type": "object", "properties": {"code": {"type": "string"}, "message": {"type": "string"}}}
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"bigmodel: {name}", "version": version("bigmodel")},
        "paths": {f"/models/{name}/predict": {"post": _predict(limits)}} | {p: {"get": g} for p, g in _gets().items()},
        "components": {"schemas": schemas},
    }


def _predict(limits: Limits) -> dict[str, Any]:
    answer = {"$ref": "#/components/schemas/TextAnswer"}
    refusals: dict[str, Any] = {
        str(status): {"description": text, "content": _json({"$ref": "#/components/schemas/Error"})}
        for status, text in REFUSALS.items()
    }
    return {
        "summary": "Answer one text or many",
        "description": f"At most {limits.max_texts} texts and {limits.max_body_bytes} bytes in one request.",
        "requestBody": {"required": True, "content": _json({"$ref": "#/components/schemas/PredictRequest"})},
        "responses": {
            "200": {
                "description": "One answer for `text`, a list of answers for `texts`.",
                "content": _json({"oneOf": [answer, {"type": "array", "items": answer}]}),
            }
        }
        | refusals,
    }


def _gets() -> dict[str, Any]:
    texts = {
        "/healthz": "The process answers.",
        "/readyz": "The model is loaded and reproduced its golden answers.",
        "/metrics": "Counters of this replica, Prometheus text.",
        "/docs": "This page.",
        "/openapi.json": "This document.",
    }
    return {path: {"summary": text, "responses": {"200": {"description": text}}} for path, text in texts.items()}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def page(name: str, limits: Limits) -> bytes:
    """HTML: a form that asks the model, the routes, the refusals, the document."""
    document = openapi(name, limits)
    routes = "".join(
        f"<tr><td>{verb.upper()}</td><td><code>{html.escape(path)}</code></td><td>{html.escape(what['summary'])}</td></tr>"
        for path, verbs in document["paths"].items()
        for verb, what in verbs.items()
    )
    refusals = "".join(f"<tr><td>{status}</td><td>{html.escape(text)}</td></tr>" for status, text in REFUSALS.items())
    parts = {
        "@NAME": html.escape(name),
        "@ROUTES": routes,
        "@REFUSALS": refusals,
        "@MAX_TEXTS": str(limits.max_texts),
        "@MAX_BYTES": str(limits.max_body_bytes),
        "@DOCUMENT": html.escape(json.dumps(document, indent=1)),
    }
    text = PAGE
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text.encode()


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>bigmodel: @NAME</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}textarea{width:100%}
pre{background:#f4f4f4;padding:.7rem;overflow:auto;white-space:pre-wrap}td{padding:.1rem 1rem .1rem 0}</style>
<h1>@NAME</h1>
<form id="ask"><textarea id="text" rows="3" aria-label="text" required></textarea><button>Ask</button></form>
<pre id="answer" aria-live="polite">The answer comes here.</pre>
<p>One text: <code>{"text": "..."}</code>, answered by one object. Many: <code>{"texts": ["...", "..."]}</code>,
answered by a list in the same order. At most @MAX_TEXTS texts and @MAX_BYTES bytes in one request. A text longer than the
model reads is answered with <code>"truncated": true</code>, <code>tokens</code> and <code>tokens_read</code>.</p>
<pre>curl -H 'content-type: application/json' -d '{"text": "..."}' <span id="origin"></span>/models/@NAME/predict</pre>
<h2>Routes</h2><table>@ROUTES</table>
<h2>Refusals</h2><p>Each is <code>{"error": {"code": "...", "message": "..."}}</code>.</p><table>@REFUSALS</table>
<details><summary>OpenAPI document</summary><pre>@DOCUMENT</pre></details>
<script>
document.getElementById("origin").textContent = location.origin;
document.getElementById("ask").onsubmit = async event => {
  event.preventDefault();
  const body = JSON.stringify({text: document.getElementById("text").value});
  const headers = {"content-type": "application/json"};
  const answer = await fetch("/models/@NAME/predict", {method: "POST", headers, body});
  document.getElementById("answer").textContent = JSON.stringify(await answer.json(), null, 1);
};
</script></html>
"""
