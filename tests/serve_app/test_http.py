"""What the endpoint says to good and bad requests, on a real server without Ray."""

import gzip
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bigmodel.tasks.tokenizer import normalize


def test_one_text_is_answered_by_one_object(client):
    status, headers, answer = client.ask({"text": "a good film"})
    assert status == 200 and headers["content-type"] == "application/json"
    assert answer.keys() == {"label", "score", "scores"}
    assert answer["label"] in ("bad", "good") and answer["scores"][answer["label"]] == answer["score"]
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_many_texts_are_answered_in_their_order(client):
    texts = ["good", "a bad film " * 10, "bad", "the boat was great today"]
    together = client.ask({"texts": texts}).body
    alone = [client.ask({"text": text}).body for text in texts]
    assert [answer["label"] for answer in together] == [answer["label"] for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_the_endpoint_answers_what_the_predictor_says(client, model):
    from bigmodel.predictor import Predictor

    texts = [f"the {word} was {'good' if i % 2 else 'bad'}" for i, word in enumerate("film book song meal".split())]
    expected = Predictor.load(model).predict([{"text": text} for text in texts])
    for one, other in zip(client.ask({"texts": texts}).body, expected, strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-6)


def test_a_text_longer_than_the_model_reads_is_answered_with_the_counts(client):
    answer = client.ask({"text": "good " * 100}).body
    assert answer["truncated"] is True
    assert (answer["tokens"], answer["tokens_read"]) == (102, 48)
    assert "truncated" not in client.ask({"text": "good " * 46}).body


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b"", 400, "invalid_json", "not JSON"),
        (b"{", 400, "invalid_json", "line 1 column 1"),
        (b'{"text": "a"', 400, "invalid_json", "EOF"),
        (b"text=good", 400, "invalid_json", "not JSON"),
        (b'{"text": "a"} {"text": "b"}', 400, "invalid_json", "trailing"),
        (b'{"text": NaN}', 400, "invalid_json", "column 10"),
        (b'{"text": "a\xff"}', 400, "invalid_json", "unicode"),
        (b'{"text": "\\ud800"}', 400, "invalid_json", "hex escape"),
        (b'{"text": "a\nb"}', 400, "invalid_json", "control character"),
        ('{"text": "good"}'.encode("utf-16"), 400, "invalid_json", "not JSON"),
        (b"[" * 10_000, 400, "invalid_json", "recursion"),
        (b'{"text": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", 400, "invalid_json", "recursion"),
        (b'{"text": "a", "text": "b"}', 422, "repeated_key", '"text" stands twice'),
        (b"[]", 422, "invalid_request", 'such as {"text": "..."}'),
        (b"null", 422, "invalid_request", "JSON object"),
        (b'"good"', 422, "invalid_request", "JSON object"),
        (b"{}", 422, "missing_key", "text is missing"),
        (b'{"text": null}', 422, "invalid_type", "text must be a string"),
        (b'{"text": 3}', 422, "invalid_type", "text must be a string"),
        (b'{"text": 1e999}', 422, "invalid_type", "text must be a string"),
        (b'{"text": ["a"]}', 422, "invalid_type", "text must be a string"),
        (b'{"texts": "a"}', 422, "invalid_type", "texts must be a list"),
        (b'{"texts": {"0": "a"}}', 422, "invalid_type", "texts must be a list"),
        (b'{"texts": ["a", 3]}', 422, "invalid_type", "texts[1] must be a string"),
        (b'{"text": ""}', 422, "invalid_value", "text is empty"),
        (b'{"text": " \\n\\t\\u3000\\u0000\\ufeff"}', 422, "invalid_value", "text is empty"),
        (b'{"texts": ["a", " "]}', 422, "invalid_value", "texts[1] is empty"),
        (b'{"texts": []}', 422, "empty", "empty list"),
        (b'{"text": "a", "texts": ["b"]}', 422, "invalid_request", "not both"),
        (b'{"text": "a", "lang": "en"}', 422, "unknown_key", "lang is not a key of a request. Keys: text, texts."),
        (b'{"txt": "a"}', 422, "missing_key", "text is missing"),
        (json.dumps({"texts": ["a"] * 9}).encode(), 413, "too_many_texts", "9 texts in one request; at most 8"),
        (json.dumps({"text": "a" * 20_000}).encode(), 413, "body_too_large", "larger than 20000 bytes"),
    ],
)
def test_a_wrong_body_is_refused_with_one_sentence(client, body, status, code, says):
    found = client.ask(body)
    assert (found.status, found.body["error"]["code"]) == (status, code)
    message = found.body["error"]["message"]
    assert says in message
    assert message.endswith(".") and "\n" not in message and len(message) < 250


def test_what_is_no_json_is_a_bad_request_and_nothing_breaks_the_server(client, data_folder):
    """JSONTestSuite: y_ is JSON, n_ is not, i_ is a matter of taste."""
    files = sorted((data_folder / "bad_inputs").rglob("[yni]_*.json"))
    assert len(files) > 200
    for file in files:
        if len(body := file.read_bytes()) <= 20_000:
            found = client.ask(body)
            wanted = {"y": {422}, "n": {400}, "i": {400, 422}}[file.name[0]]
            assert found.status in wanted and found.body["error"]["message"].endswith("."), file.name


def test_naughty_strings_are_texts(client, data_folder):
    [file] = (data_folder / "bad_inputs" / "blns").rglob("blns.json")
    for text in json.loads(file.read_text("utf-8")):
        found = client.ask({"text": text})
        assert found.status == (200 if normalize(text) else 422), text


def test_a_key_without_end_is_not_repeated(client):
    found = client.ask({"text": "a", "k" * 15_000: 1})
    assert found.status == 422 and len(found.body["error"]["message"]) < 250


def test_a_text_that_spells_a_key_is_no_key(client):
    assert client.ask({"text": "text"}).status == 200
    assert client.ask({"texts": ["texts", '"texts":', "text"]}).status == 200


@pytest.mark.parametrize(
    "text", ["🙂🙂", "e\u0301", "\u200b", "ﬁ", "\U0010ffff", "a\x00b", "\u202egood", "<script>", "\\"]
)
def test_any_character_is_read(client, text):
    assert client.ask({"text": text}).status == 200


def test_a_body_in_pieces_is_read(client):
    pieces = iter([b'{"te', b'xt": "go', b'od"}'])
    found = client.request("POST", client.path, pieces, transfer_encoding="chunked", content_type="application/json")
    assert found.status == 200


def test_a_body_in_pieces_is_refused_when_it_grows_too_large(client):
    pieces = (b'{"text": "' if i == 0 else b"a" * 1_000 for i in range(40))
    head = f"POST {client.path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    sent = head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    assert b"413 " in client.raw(sent) and client.ask({"text": "good"}).status == 200


def test_a_length_that_is_too_large_is_refused_before_the_body_comes(client):
    head = f"POST {client.path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
    found = client.raw(head.encode())
    assert found.startswith(b"HTTP/1.1 413") and b"connection: close" in found


@pytest.mark.parametrize(
    "head",
    [
        "content-length: x",
        "content-length: -1",
        "content-length: 3\r\ncontent-length: 30",
        "content-length: 3\r\ntransfer-encoding: chunked",
        "content length: 3",
    ],
)
def test_a_broken_head_is_a_bad_request(client, head):
    found = client.raw(f"POST {client.path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\nabc".encode())
    assert re.match(rb"HTTP/1.1 4\d\d ", found)


def test_a_body_that_does_not_come_is_refused_in_time(client):
    began = time.monotonic()
    found = client.raw(f"POST {client.path} HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\nabc".encode())
    assert found.startswith(b"HTTP/1.1 408") and b"had not come after 1 s" in found
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "*/*", "\xff"])
def test_another_content_type_is_refused(client, kind):
    found = client.ask({"text": "good"}, content_type=kind)
    assert found.status == 415 and "application/json" in found.body["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/x-www-form-urlencoded"]
)
def test_json_by_any_usual_name_is_accepted(client, kind):
    assert client.ask({"text": "good"}, content_type=kind).status == 200


def test_a_request_without_content_type_is_accepted(client):
    assert client.request("POST", client.path, b'{"text": "good"}').status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "GZIP"])
def test_a_compressed_body_is_refused(client, coding):
    found = client.ask(gzip.compress(b'{"text": "good"}'), content_encoding=coding)
    assert found.status == 415 and "uncompressed" in found.body["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_predict_takes_post_alone(client, method):
    found = client.request(method, client.path)
    assert found.status == 405 and found.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_pages_take_get_and_head(client, path):
    assert client.get(path).status == 200
    head = client.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    refused = client.request("POST", path, b"{}")
    assert refused.status == 405 and refused.headers["allow"] == "GET, HEAD"
    assert client.get(f"/models/reviews{path}").status == 200


NOWHERE = [
    "/",
    "/models",
    "/models/reviews",
    "/models/other/predict",
    "/models/reviews/predict/",
    "/%00",
    "/../etc/passwd",
]


@pytest.mark.parametrize("path", [*NOWHERE, "/" + "x" * 5_000])
def test_an_unknown_path_is_told_where_to_go(client, path):
    found = client.get(path)
    assert found.status == 404 and "POST /models/reviews/predict" in found.body["error"]["message"]
    assert len(found.body["error"]["message"]) < 350


def test_http_1_0_is_spoken(client):
    body = b'{"text": "good"}'
    found = client.raw(b"POST %s HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (client.path.encode(), len(body), body))
    assert b" 200 OK" in found.split(b"\r\n")[0] and b'"label"' in found


def test_a_socket_that_wants_to_be_a_web_socket_is_told_no(client):
    head = f"GET {client.path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    found = client.raw(
        f"{head}sec-websocket-version: 13\r\nsec-websocket-key: eHh4eHh4eHh4eHh4eHh4eA==\r\n\r\n".encode()
    )
    assert re.match(rb"HTTP/1.1 4\d\d ", found)


def test_a_query_is_ignored(client):
    assert client.request("POST", client.path + "?a=b", b'{"text": "good"}').status == 200


def test_requests_may_follow_each_other_on_one_connection(client):
    body = b'{"text": "good"}'
    one = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (client.path.encode(), len(body), body)
    bad = b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"
    found = client.raw(one + bad + one.replace(b"host: x", b"connection: close"))
    assert [part[:3] for part in found.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]


def test_a_client_that_leaves_early_harms_nobody(client):
    body = json.dumps({"texts": ["a good film " * 12] * 8}).encode()
    sent = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (client.path.encode(), len(body), body)
    for kept in (sent, sent[:40], sent[:-20], b"", b"\x00" * 100):
        line = client.connect()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # reset, not closed
        line.sendall(kept)
        line.close()
    assert client.ask({"text": "good"}).status == 200


def test_a_client_that_reads_slowly_gets_its_answer(client):
    with client.connect() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        line.sendall(b"GET /docs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        found = b""
        while part := line.recv(2_000):
            found += part
            time.sleep(0.005)
    assert found.endswith(b"</html>\n")


def test_many_clients_get_the_answers_to_their_own_texts(client):
    texts = [f"the {'good' if i % 3 else 'bad'} film " * (1 + i % 7) for i in range(64)]
    alone = [client.ask({"text": text}).body for text in texts]
    with ThreadPoolExecutor(16) as pool:
        together = [answer.body for answer in pool.map(lambda text: client.ask({"text": text}), texts)]
    for one, other in zip(together, alone, strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_more_than_may_wait_is_turned_away_with_a_time_to_come_back(client):
    batch = {"texts": ["a good film " * 12] * 8}
    go = threading.Barrier(24)

    def ask(_: int):
        go.wait()
        return client.ask(batch)

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, range(24)))
    assert {answer.status for answer in found} <= {200, 503} and 200 in {answer.status for answer in found}
    for answer in found:
        if answer.status == 503:
            assert answer.headers["retry-after"] == "1" and "Try again in 1 s" in answer.body["error"]["message"]


def test_the_metrics_count_what_happened(client):
    def number(name: str) -> float:
        lines = client.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"bigmodel_{name}"))

    before = {name: number(name) for name in ("inputs_total", "truncated_inputs_total", "errors_total")}
    client.ask({"texts": ["good", "bad " * 100]})
    client.ask(b"{")
    grown = {name: number(name) - before[name] for name in before}
    assert grown == {"inputs_total": 2, "truncated_inputs_total": 1, "errors_total": 1}
    assert number('requests_total{model="reviews",replica="only",status="400"}') >= 1


def test_the_document_describes_requests_and_answers(client):
    document = client.get("/openapi.json").body
    assert document["openapi"] == "3.1.0"
    post = document["paths"]["/models/reviews/predict"]["post"]
    schemas = document["components"]["schemas"]
    named = {
        one["$ref"].rpartition("/")[2] for one in post["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    }
    assert named == {"Text", "ManyTexts"}
    assert schemas["Text"]["required"] == ["text"] and schemas["ManyTexts"]["required"] == ["texts"]
    answer = client.ask({"text": "good " * 100}).body
    assert answer.keys() <= schemas["Label"]["properties"].keys()
    assert {"400", "413", "422", "503"} <= post["responses"].keys()
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert refs <= schemas.keys()


def test_the_page_fetches_nothing_and_shows_the_request(client):
    page = client.get("/docs")
    text = page.body.decode()
    assert page.headers["content-type"].startswith("text/html")
    assert '<textarea name="text"' in text and "/models/reviews/predict" in text
    assert "@" not in text.replace("@media", "") and not re.search(r'(src|href)="', text)
