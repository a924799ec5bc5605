"""The OpenAPI document of one model and the page that shows it. The page is whole in itself: nothing is fetched."""

from __future__ import annotations

import html
import json
import re
import shlex
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from serve_app.protocol import EVENTS, STREAM, Form

REFUSALS = {
    400: "The body is not JSON, or not all of it came.",
    401: "The endpoint asks for a key, and there was none, or a wrong one.",
    404: "No such path.",
    405: "Wrong method.",
    408: "The body did not come in time.",
    413: "The body is too large, or has too many inputs.",
    415: "The body is not declared as JSON, or is compressed.",
    422: "The JSON is not a request: wrong types, unknown keys, empty inputs.",
    500: "The model failed on this request.",
    503: "Too many requests wait. Try again after the seconds in Retry-After.",
}
STREAMING = {"type": "boolean", "default": False, "description": "Whether the answer comes a token at a time."}


def openapi(name: str, form: Form, keys: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1 document of the application that serves `name`, and whether it asks for a key."""
    schemas: dict[str, Any] = {}
    request = {"oneOf": [_refer(model, schemas) for model in (form.one, form.many)]}
    if form.streams:
        schemas[form.one.__name__]["properties"][STREAM] = STREAMING
    answer = _refer(form.answer, schemas)
    text = {"type": "string"}
    error = {"type": "object", "properties": {"code": text, "message": text}, "required": ["code", "message"]}
    schemas["Error"] = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    paths: dict[str, Any] = {f"/models/{name}/predict": {"post": _predict(form, request, answer)}}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"bigmodel: {name}", "version": version("bigmodel")},
        "paths": paths | {f"/models/{name}{path}": {"get": get} for path, get in _gets().items()},
        "components": {"schemas": schemas},
    }
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _predict(form: Form, request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    refused = _json({"$ref": "#/components/schemas/Error"})
    refusals = {str(status): {"description": text, "content": refused} for status, text in REFUSALS.items()}
    answered = {
        "description": f"One answer for one input, a list of answers for a list of {form.plural}.",
        "content": _json({"oneOf": [answer, {"type": "array", "items": answer}]}) | _events(form),
    }
    limits = form.limits
    return {
        "summary": "Answer one input or many",
        "description": f"At most {limits.max_inputs} {form.plural} and {limits.max_body_bytes} bytes in one request.",
        "requestBody": {"required": True, "content": _json(request) | _files(form)},
        "responses": {"200": answered} | refusals,
    }


def _files(form: Form) -> dict[str, Any]:
    """The other forms of a request about a file: its bytes, or a form with several."""
    name, media = form.file
    if not name:
        return {}
    binary = {"type": "string", "format": "binary"}
    properties = {name: binary, form.plural: {"type": "array", "items": binary}}
    return {
        media: {"schema": binary},
        "multipart/form-data": {"schema": {"type": "object", "properties": properties}},
    }


def _events(form: Form) -> dict[str, Any]:
    """The other form of an answer, where one may be streamed."""
    said = 'Events, each "data: " and JSON: {"piece": "..."} for a piece of the text, then the answer, or an error.'
    return {EVENTS.decode(): {"schema": {"type": "string", "description": said}}} if form.streams else {}


def _gets() -> dict[str, Any]:
    texts = {
        "/healthz": "The process answers.",
        "/readyz": "The model is loaded and reproduced its golden answers.",
        "/metrics": "Counters of this replica, Prometheus text.",
        "/docs": "This page.",
        "/openapi.json": "This document.",
    }
    return {path: {"summary": text, "responses": {"200": {"description": text}}} for path, text in texts.items()}


def _refer(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    """Put the model's schema, and those it is made of, among the schemas; returns a reference to it."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def page(name: str, form: Form, keys: bool = False) -> bytes:
    """HTML: a form that asks the model, the routes, the refusals, the document. A browser that was asked for a key to
    get here shows it again by itself."""
    document = openapi(name, form, keys)
    routes = "".join(
        f"<tr><td>{verb.upper()}</td><td><code>{html.escape(path)}</code></td><td>{html.escape(what['summary'])}</td></tr>"
        for path, verbs in document["paths"].items()
        for verb, what in verbs.items()
    )
    refusals = "".join(f"<tr><td>{status}</td><td>{html.escape(text)}</td></tr>" for status, text in REFUSALS.items())
    listed = json.dumps({form.plural: ["...", "..."] if form.bare else [json.loads(form.example)]})
    parts = {
        "@NAME": html.escape(name),
        "@FIELDS": "".join(_field(*field) for field in form.one.model_json_schema()["properties"].items()),
        "@ROUTES": routes,
        "@REFUSALS": refusals,
        "@ONE": html.escape(form.example, quote=False),
        "@QUOTED": html.escape(shlex.quote(form.example), quote=False),
        "@KEY": ' -H "authorization: Bearer $KEY"' if keys else "",
        "@MANY": html.escape(listed, quote=False),
        "@MAX_INPUTS": f"{form.limits.max_inputs} {html.escape(form.plural)}",
        "@MAX_BYTES": str(form.limits.max_body_bytes),
        "@DOCUMENT": html.escape(json.dumps(document, indent=1)),
    }
    return re.sub("|".join(parts), lambda mark: parts[mark[0]], PAGE).encode()  # at once: a part may spell a mark


def _field(name: str, schema: dict[str, Any]) -> str:
    """A place to type one field into: text as it is, anything else as JSON. Where it may be either, what is no JSON of
    a kind that the field takes is text."""
    if media := schema.get("contentMediaType"):
        return (
            f'<label>{html.escape(name)} <input type="file" name="{html.escape(name, True)}" accept="{media}"></label>'
        )
    kinds = [one.get("type", "object") for one in schema.get("anyOf", [schema])]
    others = [{"integer": "number"}.get(kind, kind) for kind in kinds if kind != "string"]  # as JavaScript has them
    kind = ("text or JSON" if others else "text") if "string" in kinds else "JSON"
    label, value = html.escape(name), html.escape(name, quote=True)
    return (
        f'<label>{label}<textarea name="{value}" data-kind="{kind}" data-others="{" ".join(others)}" rows="2" '
        f'placeholder="{kind}"></textarea></label>'
    )


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>bigmodel: @NAME</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}textarea{width:100%}
pre{background:#f4f4f4;padding:.7rem;overflow:auto;white-space:pre-wrap}td{padding:.1rem 1rem .1rem 0}</style>
<h1>@NAME</h1>
<form id="ask">@FIELDS<button>Ask</button></form>
<pre id="answer" aria-live="polite">The answer comes here.</pre>
<p>One: <code>@ONE</code>, answered by one object. Many: <code>@MANY</code>, answered by a list in the same order.
At most @MAX_INPUTS and @MAX_BYTES bytes in one request. An input longer than the model reads is answered with
<code>"truncated": true</code>, <code>tokens</code> and <code>tokens_read</code>.</p>
<pre>curl@KEY -H 'content-type: application/json' -d @QUOTED <span id="origin"></span>/models/@NAME/predict</pre>
<h2>Routes</h2><table>@ROUTES</table>
<h2>Refusals</h2><p>Each is <code>{"error": {"code": "...", "message": "..."}}</code>.</p><table>@REFUSALS</table>
<details><summary>OpenAPI document</summary><pre>@DOCUMENT</pre></details>
<script>
document.getElementById("origin").textContent = location.origin;
document.getElementById("ask").onsubmit = async event => {
  event.preventDefault();
  const show = text => { document.getElementById("answer").textContent = text; };
  try {
    const file = event.target.querySelector("input[type=file]");
    if (file) {
      const form = await fetch("/models/@NAME/predict", {method: "POST", body: new FormData(event.target)});
      return show(JSON.stringify(await form.json(), null, 1));
    }
    const fields = [...event.target.querySelectorAll("textarea")];
    const given = fields.filter(one => one.value || one.dataset.kind === "text");
    const kind = value => value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
    const read = one => {
      if (one.dataset.kind === "JSON") return JSON.parse(one.value);
      try {
        const value = JSON.parse(one.value);
        if (one.dataset.others.split(" ").includes(kind(value))) return value;
      } catch { /* text */ }
      return one.value;
    };
    const body = JSON.stringify(Object.fromEntries(given.map(one => [one.name, read(one)])));
    const headers = {"content-type": "application/json"};
    const answer = await fetch("/models/@NAME/predict", {method: "POST", headers, body});
    show(JSON.stringify(await answer.json(), null, 1));
  } catch (error) { show(String(error)); }
};
</script></html>
"""
