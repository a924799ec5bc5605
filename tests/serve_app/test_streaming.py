"""Answers a token at a time, over HTTP on a real server: pieces, the whole, clients that leave, refusals."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

TEXT = "".join(f"line {n}: the quick brown fox jumps over the lazy dog\n" for n in range(200))


@pytest.fixture(scope="module")
def client(decoder, on_uvicorn, client_of) -> Iterator[Any]:
    with on_uvicorn(decoder, max_inputs=8, max_waiting=20) as port:
        yield client_of(port)


def together(ask: Callable[[int], Any], count: int) -> list[Any]:
    """What each of so many says that ask at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def events(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in body.decode().split("\n\n") if event]


def test_the_pieces_of_a_stream_are_the_text_of_the_whole_answer(client):
    asked = {"text": "the quick", "max_new_tokens": 30, "temperature": 0.9, "seed": 3, "stop": ["zz"]}
    whole = client.ask(asked)
    streamed = client.ask(asked | {"stream": True})
    assert whole.status == streamed.status == 200
    assert streamed.headers["content-type"] == "text/event-stream"
    *pieces, last = events(streamed.body)
    assert last == whole.body and last["finish_reason"] in ("length", "stop")
    assert "".join(piece["piece"] for piece in pieces) == last["text"]
    assert len(pieces) > 1


def test_streams_that_run_together_say_what_each_says_alone(client):
    asked = [
        {"text": TEXT[n * 7 : n * 7 + 20 + n], "max_new_tokens": 20 + n, "seed": n, "temperature": n % 2}
        for n in range(12)
    ]
    alone = [client.ask(one).body for one in asked]

    def ask(n: int) -> Any:
        time.sleep(0.003 * n)
        return events(client.ask(asked[n] | {"stream": True}).body)[-1]

    assert together(ask, len(asked)) == alone
    assert client.ask({"inputs": asked[:8]}).body == alone[:8]


def counted(client: Any, name: str) -> float:
    lines = client.get("/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"bigmodel_{name}{{"))


def test_each_step_is_a_call_of_the_model(client):
    names = ("batch_inputs_count", "batch_inputs_sum", "batch_seconds_count", "real_tokens_total")
    before = {name: counted(client, name) for name in names}
    asked = {"text": "the", "max_new_tokens": 6}
    assert [answer["tokens"] for answer in client.ask({"inputs": [asked] * 2}).body] == [6, 6]
    calls, rows, timed, tokens = (counted(client, name) - before[name] for name in names)
    assert 6 <= calls == timed <= 12 and rows == tokens == 12


LONG = {"text": "the", "max_new_tokens": 4096}


def seconds(client: Any, asked: dict[str, Any]) -> float:
    began = time.monotonic()
    assert client.ask(asked).status == 200
    return time.monotonic() - began


def test_a_client_that_leaves_frees_its_place(client):
    from serve_app.streaming import PLACES

    long_s = seconds(client, LONG)
    lines = []
    for _ in range(PLACES):
        line = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        line.request("POST", client.path, json.dumps(LONG | {"stream": True}), {"content-type": "application/json"})
        line.getresponse().read(10)  # it is under way
        lines.append(line)
    for line in lines:
        line.close()
    assert seconds(client, {"text": "the", "max_new_tokens": 2}) < long_s / 2


def test_who_left_does_not_wait(client):
    """While all places are taken."""
    from serve_app.streaming import PLACES

    def begin(asked: dict[str, Any]) -> http.client.HTTPConnection:
        line = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        line.request("POST", client.path, json.dumps(asked | {"stream": True}), {"content-type": "application/json"})
        return line

    def wait(num: int) -> None:
        while counted(client, "waiting_inputs") != num:
            assert time.monotonic() < deadline, f"{counted(client, 'waiting_inputs')} wait, not {num}"
            time.sleep(0.01)

    deadline, answered = time.monotonic() + 10, counted(client, "inputs_total")
    under_way = [begin(LONG) for _ in range(PLACES)]
    for line in under_way:
        line.getresponse().read(10)
    waiting = [begin({"text": "the"}) for _ in range(5)]
    wait(5)
    for line in waiting:
        line.close()
    wait(0)
    assert counted(client, "inputs_total") == answered, "all places are still taken"
    for line in under_way:
        line.close()


@pytest.mark.parametrize(
    ("body", "message"),
    {
        "stream is no word": ({"text": "a", "stream": "yes"}, "stream must be true or false."),
        "many": ({"inputs": [{"text": "a"}], "stream": True}, 'Only one input can be streamed: give {"text": "..."}'),
        "too many tokens": ({"text": "a", "max_new_tokens": 5000}, "max_new_tokens must be at most "),
        "cold": ({"text": "a", "temperature": -1}, "temperature must be at least 0"),
        "unknown": ({"text": "a", "beams": 3}, "beams is not a key of a request. Keys: text, max_new_tokens"),
        "a number": ({"text": 3}, "text must be a string."),
        "no chat": ({"text": [{"role": "user"}]}, "text[0].content is missing."),
        "an empty chat": ({"text": []}, "text must be a list of at least 1."),
        "no text": ({"stream": True}, 'text is missing. Send {"text": "..."}'),
    }.values(),
)
def test_what_cannot_be_is_refused_before_anything_is_sent(client, body, message):
    refused = client.ask(body)
    assert refused.status == 422
    assert refused.body["error"]["message"].startswith(message)


PICKY = """{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}"""


SYSTEM = [{"role": "system", "content": "be brief"}]


@pytest.fixture(scope="module")
def picky(decoder, tmp_path_factory, on_uvicorn, client_of) -> Iterator[Any]:
    from bigmodel.predictor import Predictor

    predictor = Predictor.load(decoder)
    predictor.processor.chat_template = PICKY
    folder = tmp_path_factory.mktemp("picky") / "reviews" / "model"
    predictor.save(folder)
    with on_uvicorn(folder, max_inputs=20) as port:
        yield client_of(port)


def test_a_chat_that_the_template_does_not_take_is_refused_before_anything_is_sent(picky):
    asked = {"text": SYSTEM, "max_new_tokens": 3, "stream": True}
    refused = picky.ask(asked)
    assert refused.status == 422 and refused.headers["content-type"] == "application/json"
    said = "the model's chat template does not take these messages: no system message"
    assert refused.body["error"]["message"].startswith(said)
    answered = picky.ask(asked | {"text": [{"role": "user", "content": "the fox"}]})
    assert answered.status == 200 and events(answered.body)[-1]["tokens"] == 3


def test_with_one_of_many_refused_the_others_free_their_places(picky):
    from serve_app.streaming import PLACES

    long_s = seconds(picky, LONG)
    assert picky.ask({"inputs": [{"text": SYSTEM}, *[LONG] * PLACES]}).status == 422
    assert seconds(picky, {"text": "the", "max_new_tokens": 2}) < long_s / 2


# ---- translations

GERMAN = "ein Mann läuft schnell durch den kleinen Garten, zwei Hunde 好 schlafen".split()


def translator(folder: Path, model_type: str, beams: int = 1) -> Path:
    """A translator that is drawn, not trained, and so goes on until it may not."""
    from bigmodel import models
    from bigmodel.experiment import Experiment
    from bigmodel.models.init import initialize
    from bigmodel.predictor import Predictor
    from bigmodel.tasks import translation as task

    data = {"train": "unused", "source": "de", "target": "en", "max_length": 24, "tokenizer": {"min_frequency": 1}}
    asked = Experiment.model_validate({"task": "translation", "data": data})
    rows = [{"source": " ".join(GERMAN), "target": " ".join(reversed(GERMAN))}] * 2
    processor, learnt = task.fit(lambda: rows, asked)
    sizes = {"transformer": {"d_model": 16, "num_hidden_layers": 1}, "rnn_seq2seq": {"hidden_size": 16}}
    net = models.build({"type": model_type, **sizes[model_type]}, learnt, asked.task)
    initialize(net, asked.init, 0)
    net.generation_config.num_beams = beams
    net.eval()
    Predictor(asked.task, net, processor, {}).save(folder / "reviews" / "model", rows[:1])
    return folder / "reviews" / "model"


@pytest.fixture(scope="module", params=["transformer", "rnn_seq2seq"])
def translating(request, tmp_path_factory, on_uvicorn, client_of) -> Iterator[Any]:
    with on_uvicorn(translator(tmp_path_factory.mktemp("de-en"), request.param), max_inputs=8) as port:
        yield client_of(port)


def texts(count: int) -> list[str]:
    return [" ".join(GERMAN[n % 5 : 3 + n % 7 + n % 5]) for n in range(count)]


def test_the_pieces_of_a_translation_are_the_whole_one(translating):
    for text in [*texts(3), " ".join(GERMAN * 5)]:
        whole, streamed = translating.ask({"text": text}), translating.ask({"text": text, "stream": True})
        assert whole.status == streamed.status == 200
        assert streamed.headers["content-type"] == "text/event-stream"
        *pieces, last = events(streamed.body)
        assert last == whole.body and len(pieces) > 1
        assert "".join(piece["piece"] for piece in pieces) == last["translation"]
    assert last["truncated"] and last["tokens_read"] == 24 < last["tokens"]


def test_translations_that_run_together_say_what_each_says_alone(translating):
    alone = translating.ask({"texts": texts(8)}).body

    def ask(n: int) -> Any:
        return events(translating.ask({"text": texts(8)[n], "stream": True}).body)[-1]

    assert together(ask, len(alone)) == alone


def test_who_leaves_a_translation_frees_its_place(translating):
    from serve_app.streaming import PLACES

    def stream() -> float:
        began = time.monotonic()
        assert events(translating.ask({"text": GERMAN[0], "stream": True}).body)[-1]["translation"]
        return time.monotonic() - began

    alone = stream()
    lines = []
    for _ in range(4 * PLACES):
        line = http.client.HTTPConnection("127.0.0.1", translating.port, timeout=20)
        line.request("POST", translating.path, json.dumps({"text": GERMAN[1], "stream": True}))
        lines.append(line)
    for line in lines:
        line.close()
    assert stream() < 20 * alone, "64 others would take three times as long"


def test_with_beams_a_translation_comes_whole(tmp_path, on_uvicorn, client_of):
    with on_uvicorn(translator(tmp_path, "transformer", beams=3)) as port:
        client = client_of(port)
        whole = client.ask({"text": GERMAN[0]}).body
        piece, last = events(client.ask({"text": GERMAN[0], "stream": True}).body)
    assert last == whole and piece["piece"] == whole["translation"]


def test_one_translation_is_streamed_at_a_time(translating):
    refused = translating.ask({"texts": texts(2), "stream": True})
    assert refused.status == 422
    assert refused.body["error"]["message"].startswith('Only one input can be streamed: give {"text": "..."}')
