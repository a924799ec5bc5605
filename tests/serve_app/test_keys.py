"""Who may ask: files of keys, and what an endpoint says to those without one."""

import base64
import re
import secrets
import stat
from pathlib import Path

import pytest

from bigmodel.errors import ConfigError
from serve_app.app import build, refuse_open
from serve_app.keys import digests, is_private, made
from serve_app.options import ServeOptions
from serve_app.start import closed

KEY, OTHER = secrets.token_urlsafe(32), secrets.token_urlsafe(32)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# the first is the app's\n{KEY}\n\n  {OTHER}  \n")
    return file


@pytest.fixture(scope="module")
def guarded(model, key_file, on_uvicorn, client_of):
    with on_uvicorn(model, key_file=str(key_file)) as port:
        yield client_of(port)


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "authorization",
    [f"Bearer {KEY}", f"Bearer {OTHER}", f"bearer  {KEY} ", basic(f":{KEY}"), basic(f"anybody:{OTHER}")],
)
def test_who_shows_a_key_is_answered(guarded, client, authorization):
    answer = guarded.ask({"text": "a good film"}, authorization=authorization)
    assert answer.status == 200 and answer.body == client.ask({"text": "a good film"}).body
    assert guarded.request("GET", "/docs", authorization=authorization).status == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "no_key"),
        ({"authorization": ""}, "unknown_key"),
        ({"authorization": KEY}, "unknown_key"),
        ({"authorization": "Bearer"}, "unknown_key"),
        ({"authorization": f"Bearer {KEY[:-1]}"}, "unknown_key"),
        ({"authorization": f"Bearer {KEY} {OTHER}"}, "unknown_key"),
        ({"authorization": f"Token {KEY}"}, "unknown_key"),
        ({"authorization": f"Basic {KEY}"}, "unknown_key"),
        ({"authorization": "Basic !"}, "unknown_key"),
        ({"authorization": basic(f"{KEY}:")}, "unknown_key"),
        ({"authorization": "Bearer \u00e9"}, "unknown_key"),
    ],
)
def test_who_shows_none_is_refused(guarded, headers, code):
    found = guarded.ask({"text": "good"}, **headers)
    assert (found.status, found.body["error"]["code"]) == (401, code)
    assert "Bearer" in found.headers["www-authenticate"] or "Basic" in found.headers["www-authenticate"]
    assert KEY[:8] not in str(found)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/metrics", "/models/reviews/docs", "/nothing"])
def test_no_page_is_shown_to_strangers(guarded, path):
    found = guarded.get(path)
    assert found.status == 401 and found.body["error"]["message"].startswith("This endpoint asks for a key")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/models/reviews/healthz", "/models/reviews/readyz"])
def test_probes_ask_for_none(guarded, path):
    assert guarded.get(path).status == 200


def test_the_document_says_whether_a_key_is_asked_for(guarded, client):
    document = guarded.request("GET", "/openapi.json", authorization=f"Bearer {KEY}").body
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    page = guarded.request("GET", "/docs", authorization=basic(f":{KEY}")).body
    assert b'curl -H "authorization: Bearer $KEY"' in page
    assert "security" not in client.get("/openapi.json").body and b"$KEY" not in client.get("/docs").body


def test_strangers_are_counted(guarded):
    guarded.ask({"text": "good"})
    metrics = guarded.request("GET", "/metrics", authorization=f"Bearer {KEY}").body.decode()
    assert re.search(r'requests_total\{[^}]*status="401"\} [1-9]', metrics), metrics


def test_a_replica_is_given_digests_and_no_keys(model, key_file):
    _, _, given = build({"model": str(model), "key_file": str(key_file)})._bound_deployment.init_args
    assert given == digests(str(key_file)) and len(given) == 2 and not {KEY, OTHER} & set(given)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        (f"{KEY}\nshort\n", "line 2: a key has at least 16 visible characters"),
        (f"{KEY} {OTHER}\n", "line 1: a key has at least 16 visible characters and no blank"),
        (f"{KEY}\u00e9\n", "visible ASCII characters"),
    ],
)
def test_a_file_without_keys_is_named(tmp_path, text, says):
    (tmp_path / "keys").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=says) as told:
        digests(str(tmp_path / "keys"))
    assert str(tmp_path / "keys") in str(told.value) and KEY[:8] not in str(told.value)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        digests(str(tmp_path / "nothing"))


def test_the_key_that_is_made_is_its_users_alone_and_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = made()
    key = file.read_text()
    assert file == tmp_path / ".bigmodel" / "keys" and len(key) > 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert made() == file and file.read_text() == key and len(digests(str(file))) == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written: Not a directory. Name a file of keys with --key-file"):
        made()


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [("0.0.0.0", False), ("::", False), ("", False), ("192.0.2.7", False), ("nothing.invalid", False)],
)  # fmt: skip
def test_where_others_reach_it_a_key_is_asked_for(tmp_path, monkeypatch, host, private):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_private(host) == private
    said: list[str] = []
    options = closed(ServeOptions(model="m"), host, said.append)
    assert options.key_file == ("auto" if private else str(tmp_path / ".bigmodel" / "keys"))
    assert len(said) == (not private) and (tmp_path / ".bigmodel").exists() == (not private)
    assert closed(ServeOptions(model="m", key_file="none"), host, said.append).key_file == "none"


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
def test_a_config_file_opens_nothing_by_accident(host):
    with pytest.raises(ConfigError, match="Serve listens on every interface .* Name a key_file, or key_file: none"):
        refuse_open(ServeOptions(model="m"), host)
    refuse_open(ServeOptions(model="m", key_file="none"), host)
    refuse_open(ServeOptions(model="m"), "127.0.0.1")
    refuse_open(ServeOptions(model="m"), None)
