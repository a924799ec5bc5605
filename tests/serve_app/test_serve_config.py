"""A Serve config file on a cluster that somebody else runs: `serve deploy`, replicas that come and go, and guests."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from cluster import cluster as start_cluster
from cluster import free_ports

QUICK = {"num_cpus": 0.2, "target_ongoing_requests": 1, "upscale_delay_s": 0, "downscale_delay_s": 2}


@pytest.fixture(scope="module")
def cluster():
    with start_cluster(num_nodes=1) as it:
        [it.port] = free_ports(1)
        yield it


def deploy(cluster, *applications) -> subprocess.CompletedProcess:
    file = cluster.folder / "serve.yaml"
    file.write_text(
        yaml.safe_dump(
            {"http_options": {"host": "127.0.0.1", "port": cluster.port}, "applications": list(applications)}
        )
    )
    serve = str(Path(sys.executable).parent / "serve")
    return cluster.run([serve, "deploy", str(file), "--address", cluster.url], 120)


def application(model, name="reviews", **args):
    return {
        "name": name,
        "route_prefix": f"/models/{name}",
        "import_path": "serve_app.app:build",
        "args": {"model": str(model), "name": name} | QUICK | args,
    }


def applications(cluster) -> dict:
    return cluster.get("/api/serve/applications/")["applications"]


def replicas(cluster, name="reviews") -> int:
    [deployment] = applications(cluster)[name]["deployments"].values()
    return sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])


def wait(ready, what, patience_s=120):
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, f"waited {patience_s} s for {what}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def front(cluster, model, client_of):
    deployed = deploy(cluster, application(model, min_replicas=1, max_replicas=2))
    assert deployed.returncode == 0, deployed.stdout
    wait(lambda: applications(cluster)["reviews"]["status"] == "RUNNING", "the application")
    return client_of(cluster.port)


def test_a_config_file_serves_a_model_under_its_own_path(front):
    assert front.ask({"text": "a good film"}).status == 200
    assert front.ask({"text": " "}).body["error"]["message"].startswith("text is empty")
    for page in ("healthz", "readyz", "metrics", "docs", "openapi.json"):
        assert front.get(f"/models/reviews/{page}").status == 200


def test_replicas_come_with_requests_and_go_without(cluster, front):
    assert replicas(cluster) == 1
    stop, failed = threading.Event(), []

    def ask_on():
        while not stop.is_set():
            found = front.ask({"texts": ["a good film " * 10] * 32})
            if found.status != 200:
                failed.append(found)

    threads = [threading.Thread(target=ask_on) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        wait(lambda: replicas(cluster) == 2, "a second replica")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    wait(lambda: replicas(cluster) == 1, "one replica again")
    assert front.ask({"text": "good"}).status == 200


def test_a_misspelt_key_is_refused_with_a_message(cluster, front, model):
    wrong = application(model, name="wrong", max_replica=3)
    assert deploy(cluster, application(model, min_replicas=1, max_replicas=2), wrong).returncode == 0
    wait(lambda: applications(cluster)["wrong"]["status"] == "DEPLOY_FAILED", "the refusal")
    said = applications(cluster)["wrong"]["message"]
    assert "args: there is no 'max_replica'. Did you mean 'max_replicas'?" in said
    assert front.ask({"text": "good"}).status == 200


def serve(cluster, model, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "bigmodel", "serve", str(model), "--num-cpus", "0.2", *arguments]
    return subprocess.Popen(
        command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_guest_takes_no_name_and_no_more_than_there_is(cluster, front, model):
    said = serve(cluster, model, "--name", "reviews").communicate(timeout=60)[0]
    assert "already serves an application 'reviews'. Choose another --name" in said
    asked = serve(cluster, model, "--name", "large", "--min-replicas", "50", "--max-replicas", "50")
    said = asked.communicate(timeout=60)[0]
    assert "50 replicas of 0.2 CPU each need 10; the Ray at" in said and asked.returncode == 2
    assert applications(cluster).keys() >= {"reviews"} and "large" not in applications(cluster)
    assert front.ask({"text": "good"}).status == 200


def test_a_guest_takes_away_its_own_application_and_nothing_else(cluster, front, model, client_of):
    guest = serve(cluster, model, "--name", "guest")
    assert f"guest answers at http://127.0.0.1:{cluster.port}/models/guest/predict" in guest.stdout.readline()
    found = client_of(cluster.port, "guest")
    assert found.ask({"text": "good"}).status == 200 and found.get("/models/guest/docs").status == 200
    os.kill(guest.pid, signal.SIGINT)
    assert guest.wait(60) == 0
    guest.stdout.close()
    assert "guest" not in applications(cluster) and applications(cluster)["reviews"]["status"] == "RUNNING"
    assert front.ask({"text": "good"}).status == 200
