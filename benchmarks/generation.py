"""Tokens/s of our decoding beside transformers' `generate`, for the decoder that text-generation trains by default.

    python benchmarks/generation.py                        128 tokens after 32, at 1 and 8 streams, 3 rounds
    python benchmarks/generation.py --tokens 16 --rounds 1    does it work?

All take the likeliest token each time, from the same weights, after the same prompts, and must write the same; none
ends early. Each contender has a process of its own; rounds are interleaved. Text is made of the tokens by ours alone,
for it is what the endpoint streams; `generate` returns numbers. Weights are as they are drawn: their values change no
speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from training import processor_name

STREAMS = 8
LONGEST = 256
PROMPT = 32
CONTENDERS = {
    "ours-1": "bigmodel, 1 stream",
    "generate-1": "generate, 1 request",
    "ours-8": f"bigmodel, {STREAMS} streams at once",
    "generate-after": f"generate, {STREAMS} requests one after another",
    "generate-batch": f"generate, a batch of {STREAMS} that begins and ends together",
}
AGAINST = [("ours-1", "generate-1"), ("ours-8", "generate-after"), ("ours-8", "generate-batch")]
BARS = {"generate-1": 1.0}


def decoder() -> tuple[Any, Any]:
    """Model and tokenizer as text-generation makes them of characters."""
    from bigmodel import models
    from bigmodel.experiment import Experiment
    from bigmodel.models.init import initialize
    from bigmodel.tasks import text_generation as task

    data = {"train": "none", "max_length": LONGEST, "tokenizer": {"type": "char", "min_frequency": 1}}
    experiment = Experiment.model_validate({"task": "text-generation", "data": data})
    alphabet = "".join(map(chr, range(32, 127)))
    processor, learnt = task.fit(lambda: [{"text": alphabet}], experiment)
    model = models.build(experiment.model, learnt, experiment.task)
    initialize(model, "xavier", 0)
    model.generation_config.eos_token_id = None  # nothing ends early
    return model.eval(), processor


def prompts(processor: Any) -> list[list[int]]:
    texts = ["".join(chr(32 + (7 * i * i + 31 * n + i) % 95) for i in range(PROMPT)) for n in range(STREAMS)]
    return [processor(text, add_special_tokens=False)["input_ids"][:PROMPT] for text in texts]


def ours(model: Any, processor: Any, asked: list[list[int]], tokens: int) -> list[list[int]]:
    from bigmodel.tasks.decoding import Decoder

    running = Decoder(model, processor, len(asked))
    for key, ids in enumerate(asked):
        running.join(key, {"input_ids": ids, "options": {"max_new_tokens": tokens}})
    rows = list(running._rows)  # they know the tokens; an answer has the text
    while running.num_rows:
        running.step()
    return [row.new for row in rows]


def generate(model: Any, asked: list[list[int]], tokens: int) -> list[list[int]]:
    """All in one batch: the prompts are of one length."""
    import torch

    ids = torch.tensor(asked)
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return [row[PROMPT:] for row in written.tolist()]


def contend(name: str, tokens: int, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    model, processor = decoder()
    every = prompts(processor)
    calls: dict[str, Callable[[], list[list[int]]]] = {
        "ours-1": lambda: ours(model, processor, every[:1], tokens),
        "generate-1": lambda: generate(model, every[:1], tokens),
        "ours-8": lambda: ours(model, processor, every, tokens),
        "generate-after": lambda: [generate(model, [one], tokens)[0] for one in every],
        "generate-batch": lambda: generate(model, every, tokens),
    }
    calls[name]()  # what is made once is made now
    began, cpu = time.perf_counter(), time.process_time()
    written = calls[name]()
    count = sum(map(len, written))
    assert count == len(written) * tokens, "a row ended early"
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {"rate": count / wall_s, "per_cpu_s": count / cpu_s, "written": written}


def in_a_process(name: str, tokens: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--contend", name, str(tokens), str(threads)]
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| decoded by | tokens/s | tokens per CPU second |", "|---|---|---|"]
    for name, found in results.items():
        speeds = [statistics.median(one[speed] for one in found) for speed in ("rate", "per_cpu_s")]
        lines.append(f"| {CONTENDERS[name]} | {speeds[0]:,.0f} | {speeds[1]:,.0f} |")
    lines.append("")
    for a, b in AGAINST:
        wall, cpu = (
            statistics.median(x[speed] / y[speed] for x, y in zip(results[a], results[b], strict=True))
            for speed in ("rate", "per_cpu_s")
        )
        bar = f" (bar {BARS[b]:g}{'' if wall >= BARS[b] else ', MISSED'})" if b in BARS else ""
        lines.append(f"{CONTENDERS[a]}: {wall:.2f}x of {CONTENDERS[b]}{bar}; by CPU time {cpu:.2f}x")
    return "\n".join(lines)


def same(results: dict[str, list[dict[str, Any]]]) -> str:
    """Whether all wrote the same. Nearly equal logits may swap a token, and all that follow it."""
    written = [found[0]["written"] for found in results.values()]
    pairs = [(row, one[i]) for one in written[1:] for i, row in enumerate(written[0]) if i < len(one)]
    pairs += [(row, one[i]) for one in written[3:] for i, row in enumerate(written[2])]
    agree = sum(a == b for a, b in pairs)
    return f"Rows written alike: {agree} of {len(pairs)} compared."


def main() -> None:
    if sys.argv[1:2] == ["--contend"]:
        name, tokens, threads = sys.argv[2:]
        print(json.dumps(contend(name, int(tokens), int(threads))))
        return
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128, help="written after each prompt (default 128)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"Machine: {processor_name()}, {asked.threads} threads of {os.cpu_count()} cores, load {load:.1f}.")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(asked.rounds):
        for name, found in results.items():
            found.append(in_a_process(name, asked.tokens, asked.threads))
    print(f"{asked.tokens} tokens after {PROMPT}, median of {asked.rounds} interleaved rounds.\n")
    print(table(results))
    print(same(results))


if __name__ == "__main__":
    main()
