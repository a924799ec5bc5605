"""The same checkpoint served by bigmodel, by the usual Ray Serve pattern and by FastAPI with pipeline, side by side.

    python benchmarks/serving.py                              trains an encoder first, then 3 rounds (about 5 minutes)
    python benchmarks/serving.py --model runs/reviews/model   any text classifier
    python benchmarks/serving.py --rounds 1 --seconds 2       does it work?

One contender runs at a time, as its own processes, and is asked by one process with raw sockets (or by wrk, --wrk) over
1 and over 32 connections, each with one request under way; rounds are interleaved, so that a noisy minute disturbs all
of them. The texts have mixed lengths, like hotel reviews. Before anything is timed, all contenders must give the same
label for every text. All read the same directory, on the same machine, which the client shares.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import reviews


class Contender(NamedTuple):
    words: str
    file: str = ""
    arguments: tuple[str, ...] = ()


CONTENDERS = {
    "bigmodel": Contender("bigmodel serve, its defaults"),
    "rayserve": Contender("Ray Serve: ingress, handle, @serve.batch(32), default proxy", "usual_ray_serve.py"),
    "fastapi": Contender("FastAPI, uvicorn and pipeline", "fastapi_pipeline.py"),
    "fastapi-1": Contender("FastAPI, uvicorn and pipeline, a thread a request", "fastapi_pipeline.py", ("1",)),
}
CLIENTS = (1, 32)
NUM_TEXTS = 256
ENCODER = {
    "type": "transformer",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}


# ---- the contenders; each answers POST /models/model/predict {"text": ...} with {"label": ...}


def command(name: str, model: str, port: int) -> list[str]:
    if name == "bigmodel":
        return [sys.executable, "-m", "bigmodel", "serve", model, "--port", str(port), "--name", "model"]
    contender = CONTENDERS[name]
    return [sys.executable, str(Path(__file__).parent / contender.file), model, str(port), *contender.arguments]


@contextmanager
def serving(name: str, model: str) -> Iterator[int]:
    """One contender up and answering; yields its port."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command(name, model, port), env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_it_answers(port, process)
            yield port
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_until_it_answers(port: int, process: subprocess.Popen[bytes], patience_s: float = 120) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            labels(port, ["好"])
            return
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            time.sleep(0.2)
    raise RuntimeError(f"no answer at port {port}")


def labels(port: int, texts: Sequence[str]) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    found = []
    for text in texts:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/models/model/predict", json.dumps({"text": text}), headers)
        found.append(json.loads(connection.getresponse().read())["label"])
    connection.close()
    return found


# ---- the client: one process, one thread, raw sockets


def ask(port: int, texts: Sequence[str], clients: int, warm_s: float, seconds: float) -> dict[str, float]:
    """Each connection sends its next request when it has its answer. -> requests/s and latencies in ms."""
    messages = itertools.cycle([message(text) for text in texts])
    poller, clock = select.epoll(), time.perf_counter
    sockets: dict[int, socket.socket] = {}
    sent: dict[int, float] = {}

    def connect() -> int:
        one = socket.create_connection(("127.0.0.1", port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[one.fileno()] = one
        poller.register(one.fileno(), select.EPOLLIN)
        return one.fileno()

    for _ in range(clients):
        number = connect()
        sent[number] = clock()
        sockets[number].sendall(next(messages))
    begin = clock() + warm_s
    end = begin + seconds
    latencies: list[float] = []
    parts: dict[int, bytes] = {}
    while (now := clock()) < end:
        for number, _ in poller.poll(1):
            answer = parts.pop(number, b"") + sockets[number].recv(65536)
            if not whole(answer):
                parts[number] = answer
                continue
            now = clock()
            if now >= begin:
                latencies.append(now - sent[number])
            if b"\r\nconnection: close\r\n" in answer.lower():
                sockets.pop(number).close()
                number = connect()
            sent[number] = now
            sockets[number].sendall(next(messages))
    for one in sockets.values():
        one.close()
    return summary(latencies, seconds)


def message(text: str) -> bytes:
    body = json.dumps({"text": text}, ensure_ascii=False).encode()
    head = "POST /models/model/predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def whole(answer: bytes) -> bool:
    """Whether all of an answer has come; any but a 200 ends the benchmark."""
    if not answer:
        raise RuntimeError("a connection was closed")
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"a request failed: {answer[:300]!r}")
    lowered = head.lower()
    start = lowered.index(b"content-length:") + 15
    length = int(lowered[start:].partition(b"\r\n")[0])
    return len(body) >= length


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    ordered = sorted(latencies)
    quantiles = {f"p{q}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 95, 99)}
    return {"rate": len(ordered) / seconds, **quantiles}


LUA = """
local f = io.open("%s")
local bodies = {}
for line in f:lines() do bodies[#bodies + 1] = line end
local turn = 0
wrk.method, wrk.path = "POST", "/models/model/predict"
wrk.headers["Content-Type"] = "application/json"
request = function() turn = turn + 1; return wrk.format(nil, nil, nil, bodies[turn %% #bodies + 1]) end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), e.status + e.read + e.write + e.connect))
end
"""


def ask_with_wrk(port: int, texts: Sequence[str], clients: int, warm_s: float, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        bodies, script = Path(folder) / "bodies", Path(folder) / "ask.lua"
        bodies.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts))
        script.write_text(LUA % bodies)
        for duration in (max(1, round(warm_s)), max(1, round(seconds))):
            command = ["wrk", "-t1", f"-c{clients}", f"-d{duration}s", "-s", str(script), f"http://127.0.0.1:{port}"]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in told.splitlines() if line.startswith("RESULT"))
    requests, micros, p50, p95, p99, errors = map(int, line.split()[1:])
    if errors:
        raise RuntimeError(f"{errors} requests failed")
    return {"rate": requests / micros * 1e6, "p50": p50 / 1000, "p95": p95 / 1000, "p99": p99 / 1000}


# ---- the contest


def train(folder: Path, seed: int) -> str:
    """A small encoder taught to tell these reviews apart. -> its directory."""
    from bigmodel.experiment import Experiment
    from bigmodel.training.fit import fit

    rows, held_out, _ = reviews.reviews(seed)
    reviews.write(folder / "train.csv", reviews.lengthen(rows, 2_000, seed))
    reviews.write(folder / "valid.csv", reviews.lengthen(held_out, 200, seed + 2))
    data = {"train": str(folder / "train.csv"), "valid": str(folder / "valid.csv"), "text": "text", "label": "label"}
    experiment = Experiment.model_validate(
        {
            "task": "text-classification",
            "data": data | {"split": {"valid": 0, "test": 0}, "max_length": reviews.LONGEST + 2},
            "model": ENCODER,
            "train": {"epochs": 2, "seed": seed},
            "output": str(folder / "run"),
        }
    )
    return str(fit(experiment).model)


def contest(
    names: Sequence[str], model: str, texts: Sequence[str], asked: argparse.Namespace
) -> dict[str, dict[int, list[dict[str, float]]]]:
    results: dict[str, dict[int, list[dict[str, float]]]] = {name: {n: [] for n in CLIENTS} for name in names}
    agreed: list[str] = []
    for number in range(asked.rounds):
        for name in names:
            with serving(name, model) as port:
                if number == 0:
                    compare(name, labels(port, texts), agreed)
                for clients in CLIENTS:
                    found = measure(port, texts, clients, asked)
                    results[name][clients].append(found)
                    line = f"{found['rate']:7.0f} requests/s, p50 {found['p50']:6.1f} ms"
                    print(f"round {number + 1}  {name:<9} {clients:>2} clients {line}", file=sys.stderr, flush=True)
    return results


def compare(name: str, found: list[str], agreed: list[str]) -> None:
    """All contenders say what the first one said."""
    agreed += found if not agreed else []
    differ = sum(a != b for a, b in zip(agreed, found, strict=True))
    if differ:
        sys.exit(f"{name} gives {differ} of {len(agreed)} texts another label than the first contender")


def measure(port: int, texts: Sequence[str], clients: int, asked: argparse.Namespace) -> dict[str, float]:
    if asked.wrk:
        return ask_with_wrk(port, texts, clients, asked.warm, asked.seconds)
    command = [sys.executable, __file__, "--client", str(port), str(clients), str(asked.warm), str(asked.seconds)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(results: dict[str, dict[int, list[dict[str, float]]]]) -> str:
    """Medians over the rounds; the ratio is the median of the rounds' own ratios."""
    lines = ["| served by | clients | requests/s | bigmodel is | p50 | p95 | p99 |", "|---|---|---|---|---|---|---|"]
    for clients in CLIENTS:
        for name, by_clients in results.items():
            found = by_clients[clients]
            rates = [one["rate"] for one in found]
            spread = f" ({min(rates):.0f} to {max(rates):.0f})" if len(rates) > 1 else ""
            ratio = ""
            if name != "bigmodel" and "bigmodel" in results:
                ours = [one["rate"] for one in results["bigmodel"][clients]]
                ratio = f"{statistics.median(a / b for a, b in zip(ours, rates, strict=True)):.1f}x"
            times = [f"{statistics.median(one[q] for one in found):.1f} ms" for q in ("p50", "p95", "p99")]
            row = (CONTENDERS[name].words, str(clients), f"{statistics.median(rates):.0f}{spread}", ratio, *times)
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def conditions(model: str, texts: Sequence[str], asked: argparse.Namespace) -> str:
    from training import processor_name

    lengths = sorted(len(text) for text in texts)
    info = Path(model) / "bigmodel.json"
    precision = json.loads(info.read_text("utf-8")).get("precision", "fp32") if info.exists() else "fp32"
    return (
        f"Texts: {len(texts)}, characters: mean {statistics.mean(lengths):.0f}, median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}; one a request. bigmodel computes in {precision}, as training recorded; the others in "
        f"fp32, as they load it.\nMachine: {processor_name()}, {os.cpu_count()} cores shared with the client "
        f"({'wrk' if asked.wrk else 'one Python process, raw sockets'}), load {os.getloadavg()[0]:.1f} at the start.\n"
        f"Median of {asked.rounds} interleaved rounds of {asked.seconds:g} s after {asked.warm:g} s of warm-up."
    )


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        port, clients, warm, seconds = sys.argv[2:]
        print(json.dumps(ask(int(port), json.load(sys.stdin), int(clients), float(warm), float(seconds))))
        return
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory; else a small encoder is trained first")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (default 4)")
    parser.add_argument("--warm", type=float, default=1.5, help="seconds before it (default 1.5)")
    parser.add_argument("--wrk", action="store_true", help="ask with wrk instead of the client in this file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write every round's numbers here, as JSON")
    asked = parser.parse_args()
    if asked.wrk and not shutil.which("wrk"):
        parser.error("--wrk: there is no wrk on the path")

    with tempfile.TemporaryDirectory() as folder:
        _, held_out, what = reviews.reviews(asked.seed)
        texts = [text for text, _ in reviews.lengthen(held_out, NUM_TEXTS, asked.seed + 1)]
        model = os.path.abspath(asked.model) if asked.model else train(Path(folder), asked.seed)
        print(f"Data: {what}, strung together to the lengths of hotel reviews.")
        print(conditions(model, texts, asked), flush=True)
        results = contest(asked.contenders, model, texts, asked)
    print(f"Labels are equal in {', '.join(asked.contenders)}.\n\n{table(results)}")
    if asked.output:
        asked.output.write_text(json.dumps({"data": what, "results": results}, indent=1))


if __name__ == "__main__":
    main()
