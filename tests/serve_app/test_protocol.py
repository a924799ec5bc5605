"""The form of requests for a task that is not text: what a later task gets without touching the endpoint."""

import html
import json
import re
import shutil
import subprocess
import time
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, create_model

from bigmodel.tasks import text_classification, text_generation
from serve_app.documents import openapi, page
from serve_app.protocol import Form, Limits
from serve_app.refusal import Refusal


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    age: int = Field(ge=0)
    city: Literal["Lyon", "Wuhan"] | None = None


class Guess(BaseModel):
    income: float


FORM = Form(Person, Guess, Limits(max_inputs=2))
CHAT = Form(text_generation.request(None), text_generation.answer(None), Limits())
TEXT = Form(text_classification.request(None), text_classification.answer(None), Limits())
KEYS = st.sampled_from(["text", "texts", "age", "city", "inputs"]) | st.text(max_size=4)


def test_an_input_of_several_fields_is_an_object_and_many_are_listed_whole():
    assert FORM.parse(b'{"age": 3}') == ([{"age": 3, "city": None}], False)
    many = b'{"inputs": [{"age": 3, "city": "Lyon"}, {"age": 4}]}'
    assert FORM.parse(many) == ([{"age": 3, "city": "Lyon"}, {"age": 4, "city": None}], True)


def test_a_field_that_is_called_inputs_leaves_another_name_for_many():
    form = Form(create_model("Row", inputs=(int, ...), a=(int, 0)), Guess, Limits())
    assert form.parse(b'{"inputs": 3, "a": 1}') == ([{"inputs": 3, "a": 1}], False)
    assert form.parse(b'{"many_inputs": [{"inputs": 3}]}') == ([{"inputs": 3, "a": 0}], True)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"city": "Lyon"}', 422, "age is missing"),
        (b'{"age": -1}', 422, "age must be at least 0."),
        (b'{"age": 3, "city": "Rome"}', 422, "city must be 'Lyon' or 'Wuhan'."),
        (b'{"inputs": [{"age": 1}, {"age": "x"}]}', 422, "inputs[1].age"),
        (b'{"inputs": [3]}', 422, "inputs[0] must be an object."),
        (b'{"inputs": [{"age": 1}, {"age": 1}, {"age": 1}]}', 413, "3 inputs in one request; at most 2"),
        (b'{"age": 1, "inputs": []}', 422, "not both"),
        (b'{"age": 1, "age": 2}', 422, 'The key "age" stands twice in one object.'),
        (b'{"age": 1, "\\u0061ge": 2}', 422, 'The key "age" stands twice in one object.'),
        (b'{"inputs": [{"age": 1, "city": null, "age": 1}]}', 422, 'The key "age" stands twice in one object.'),
        (b'{"age": 1, "agee": 1}', 422, "agee is not a key of a request. Keys: age, city, inputs."),
    ],
)
def test_what_is_wrong_is_named_by_its_place(body, status, says):
    with pytest.raises(Refusal) as refused:
        FORM.parse(body)
    assert refused.value.status == status and says in refused.value.message


KEYS_100K = ",".join(f'"a{n:05}":1' for n in range(100_000))


@pytest.mark.parametrize(
    ("form", "body", "says"),
    [
        (FORM, f"{{{KEYS_100K}}}", "age is missing"),
        (FORM, f'{{{KEYS_100K},"a99999":1}}', 'The key "a99999" stands twice'),
        (FORM, f'{{"inputs":[{{{KEYS_100K},"a99999":1}}]}}', 'The key "a99999" stands twice'),
        (CHAT, f'{{"text":[{"{}," * 300_000}{{}}]}}', r"text\[0\].role is missing"),
    ],
)
def test_a_megabyte_of_json_holds_nobody_up(form, body, says):
    began = time.thread_time()
    with pytest.raises(Refusal, match=says):
        form.parse(body.encode())
    assert time.thread_time() - began < 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=60) | JSON.map(lambda tree: json.dumps(tree).encode()))
def test_any_bytes_are_a_request_or_a_refusal(body):
    for form in (FORM, TEXT):
        try:
            inputs, _ = form.parse(body)
        except Refusal as refused:
            assert refused.status in (400, 413, 422) and "\n" not in refused.message and len(refused.message) < 300
        else:
            assert all(row.keys() == form.one.model_fields.keys() for row in inputs)


def test_document_and_page_are_made_of_the_form():
    schemas = openapi("people", FORM)["components"]["schemas"]
    assert schemas["Person"]["properties"]["age"]["minimum"] == 0 and "income" in schemas["Guess"]["properties"]
    text = page("people", FORM).decode()
    assert 'name="age" data-kind="JSON"' in text and '{"age": "...", "city": "..."}' in text
    assert 'name="city" data-kind="text or JSON" data-others="null"' in text
    assert 'name="text" data-kind="text or JSON" data-others="array"' in page("chat", CHAT).decode()


def test_the_document_says_that_an_answer_can_be_streamed_where_it_can():
    form = Form(text_generation.request(None), text_generation.answer(None), Limits(), streams=True)
    for one, streams in ((form, True), (CHAT, False)):
        document = openapi("chat", one)
        properties = document["components"]["schemas"][one.one.__name__]["properties"]
        answered = document["paths"]["/models/chat/predict"]["post"]["responses"]["200"]["content"]
        assert ("stream" in properties) is ("text/event-stream" in answered) is streams


def test_the_document_names_the_pages_where_also_a_shared_ray_has_them():
    assert all(path.startswith("/models/people/") for path in openapi("people", FORM)["paths"])


def test_any_name_of_a_column_leaves_the_page_whole():
    form = Form(create_model("Row", **{"@ROUTES": (int, ...), "it's": (int, ...)}), Guess, Limits())
    text = html.unescape(page("people", form).decode())
    assert """-d '{"@ROUTES": "...", "it'"'"'s": "..."}' <span""" in text


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node")
def test_the_page_sends_what_is_typed():
    typed = {"text": "def f", "stop": '["a"]', "seed": ""}
    chat = {"text": '[{"role": "user", "content": "hi"}]'}
    sent = [json.loads(asked(page("chat", CHAT).decode(), fields)) for fields in (typed, chat, {"text": "3"})]
    assert sent == [{"text": "def f", "stop": ["a"]}, {"text": json.loads(chat["text"])}, {"text": "3"}]


def asked(text: str, typed: dict[str, str]) -> str:
    """The body that the page's script sends."""
    found = re.findall(r'<textarea name="([^"]*)" data-kind="([^"]*)" data-others="([^"]*)"', text)
    areas = [{"name": name, "value": typed.get(name, ""), "dataset": {"kind": kind, "others": others}}
             for name, kind, others in found]  # fmt: skip
    script = text.partition("<script>")[2].partition("</script>")[0]
    browser = f"""
    const form = {{}}, location = {{origin: ""}};
    const document = {{getElementById: () => form}};
    const fetch = async (path, what) => {{ console.log(what.body); return {{json: async () => ({{}})}}; }};
    {script}
    form.onsubmit({{
      preventDefault: () => 0,
      target: {{querySelector: () => null, querySelectorAll: () => {json.dumps(areas)}}}
    }});"""
    return subprocess.run(["node", "-e", browser], capture_output=True, text=True, check=True, timeout=30).stdout
