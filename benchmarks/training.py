"""The same model, rows and steps trained by bigmodel, transformers.Trainer and a hand-written loop, side by side.

    python benchmarks/training.py                             waimai_10k as it is, encoder, 3 rounds
    python benchmarks/training.py --lengthen                  6,212 texts of the lengths of hotel reviews
    python benchmarks/training.py --model lstm                or textcnn: bigmodel against the hand-written loop
    python benchmarks/training.py --rows 1000 --rounds 1      does it work?

All contenders start from the same weights, read the same tokens and use Adam with the same learning rates, batch size
and clipping; each has a process of its own with the same number of threads; rounds are interleaved, so that a noisy
minute disturbs all of them. samples/s is counted over all epochs but the first, without validation and saving. Accuracy
is that of the weights after the last step on rows that nobody trained on. Needs the extra `bench` (accelerate, for the
Trainer).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reviews

CONTENDERS = {
    "bigmodel": "bigmodel (in this process, defaults)",
    "trainer": "transformers.Trainer, defaults",
    "trainer-best": "transformers.Trainer, grouped by length, best precision",
    "hand": "hand-written loop, same bucketing and precision",
}
MODELS: dict[str, dict[str, Any]] = {
    "encoder": {
        "type": "transformer",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    },
    "lstm": {"type": "lstm", "hidden_size": 100},
    "textcnn": {"type": "textcnn"},
}


@dataclass(frozen=True)
class Job:
    """What all contenders do."""

    folder: str
    model: str
    epochs: int
    threads: int
    precision: str
    seed: int = 0
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 50

    @property
    def train(self) -> Path:
        return Path(self.folder) / "train.csv"

    @property
    def held_out(self) -> Path:
        return Path(self.folder) / "held_out.csv"


# ---- the contenders: each returns samples/s after the first epoch, accuracy after the last, and its precision


def bigmodel(job: Job, number: int) -> dict[str, Any]:
    from bigmodel.training.fit import fit

    run = fit(experiment(job, f"run-{number}"))
    events = [json.loads(line) for line in run.events.read_text("utf-8").splitlines()]
    steps = [event for event in events if event["kind"] == "step" and event["epoch"] > 0]
    seconds = sum(step["samples"] / step["samples_per_s"] for step in steps)
    last = [event for event in events if event["kind"] == "validation"][-1]
    choices = [event["choice"] for event in events if event["kind"] == "decision" and event["what"] == "precision"]
    return {
        "samples_per_s": sum(step["samples"] for step in steps) / seconds,
        "accuracy": last["accuracy"],
        "precision": choices[-1] if choices else job.precision,
    }


def trainer(job: Job, best: bool) -> dict[str, Any]:
    """The Trainer as its documentation shows it; it pads each batch to its longest text in both forms."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, processor, samples, held_out = parts(job)
    bf16 = best and job.precision == "bf16"
    quick = {"train_sampling_strategy": "group_by_length", "bf16": bf16} if best else {}
    marks: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        on_epoch_end = on_epoch_begin

    arguments = TrainingArguments(
        output_dir=str(Path(job.folder) / "trainer"),
        use_cpu=True,
        per_device_train_batch_size=job.batch_size,
        num_train_epochs=job.epochs,
        learning_rate=job.lr,
        lr_scheduler_type="cosine",
        warmup_steps=job.warmup,
        seed=job.seed,
        save_strategy="no",  # nobody's saving is counted
        disable_tqdm=True,
        report_to="none",
        **quick,
    )
    dataset = [
        {"input_ids": s["input_ids"].tolist(), "attention_mask": [1] * len(s["input_ids"]), "labels": s["labels"]}
        for s in samples
    ]
    Trainer(model, arguments, train_dataset=dataset, processing_class=processor, callbacks=[Watch()]).train()
    seconds = [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]
    return result(job, model, processor, held_out, len(samples), seconds, "bf16" if bf16 else "fp32")


def hand(job: Job) -> dict[str, Any]:
    import hand_loop

    model, processor, samples, held_out = parts(job)
    seconds = hand_loop.train(
        model,
        [sample["input_ids"] for sample in samples],
        np.array([sample["labels"] for sample in samples]),
        pad=processor.pad_token_id,
        epochs=job.epochs,
        batch_size=job.batch_size,
        lr=job.lr,
        warmup=job.warmup,
        precision=job.precision,
        seed=job.seed,
    )
    return result(job, model, processor, held_out, len(samples), seconds, job.precision)


def experiment(job: Job, output: str) -> Any:
    from bigmodel.experiment import Experiment

    data = {"train": str(job.train), "valid": str(job.held_out), "text": "text", "label": "label"}
    same = {"batch_size": job.batch_size, "epochs": job.epochs, "seed": job.seed, "precision": job.precision}
    return Experiment.model_validate(
        {
            "task": "text-classification",
            "data": data | {"split": {"valid": 0, "test": 0}, "max_length": reviews.LONGEST, "max_bad": 0},
            "model": MODELS[job.model],
            "optim": {"type": "adam", "lr": job.lr, "schedule": "cosine", "warmup": job.warmup, "clip": 1.0},
            "train": same | {"workers": 0, "device": "cpu", "threads": job.threads},
            "output": str(Path(job.folder) / output),
        }
    )


def parts(job: Job) -> tuple[Any, Any, list[Any], list[Any]]:
    """Model, tokenizer, training and held-out samples: what bigmodel makes of the experiment, for the others to use."""
    from bigmodel import models
    from bigmodel.models.init import initialize
    from bigmodel.tasks import text_classification as task

    wanted = experiment(job, "unused")
    rows, held_out = reviews.read(job.train), reviews.read(job.held_out)
    processor, learnt = task.fit(lambda: rows, wanted)
    model = models.build(wanted.model, learnt, wanted.task)
    initialize(model, wanted.init, job.seed)
    return model, processor, task.encode(rows, processor, learnt), task.encode(held_out, processor, learnt)


def result(
    job: Job, model: Any, processor: Any, held_out: Sequence[Any], size: int, seconds: list[float], precision: str
) -> dict[str, Any]:
    import hand_loop
    import torch

    assert len(seconds) == job.epochs, f"{len(seconds)} epochs were counted, {job.epochs} asked for"
    right = 0
    model.eval()
    ordered = sorted(held_out, key=lambda sample: len(sample["input_ids"]))
    with torch.inference_mode():
        for start in range(0, len(ordered), 64):
            part = ordered[start : start + 64]
            batch = hand_loop.collate([sample["input_ids"] for sample in part], processor.pad_token_id)
            labels = torch.tensor([sample["labels"] for sample in part])
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    rate = size * (job.epochs - 1) / sum(seconds[1:])
    return {"samples_per_s": rate, "accuracy": right / len(held_out), "precision": precision}


def contend(name: str, job: Job, number: int) -> dict[str, Any]:
    if name == "bigmodel":
        from bigmodel.imports import lighten

        lighten()  # as its command does
    import torch

    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    if name == "bigmodel":
        found = bigmodel(job, number)
    else:
        found = hand(job) if name == "hand" else trainer(job, best=name == "trainer-best")
    return found | {"wall_s": round(time.perf_counter() - start, 1)}


# ---- the contest


def prepare(folder: Path, rows: int | None, lengthened: bool, seed: int) -> str:
    """Write the rows for everybody. -> what they are."""
    train, held_out, what = reviews.reviews(seed)
    if lengthened:
        train = reviews.lengthen(train, rows or 6_212, seed)
        held_out = reviews.lengthen(held_out, max(200, len(train) // 5), seed + 1)
        what = f"{what}, strung together to the lengths of hotel reviews"
    train = train[:rows]
    held_out = held_out[: max(200, len(train) // 4)]
    reviews.write(folder / "train.csv", train)
    reviews.write(folder / "held_out.csv", held_out)
    lengths = sorted(len(text) for text, _ in train)
    return (
        f"{what}: {len(train):,} to train on, {len(held_out):,} held out; "
        f"characters: mean {statistics.mean(lengths):.0f}, median {lengths[len(lengths) // 2]}, longest {lengths[-1]}"
    )


def contest(names: Sequence[str], job: Job, rounds: int) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            found = in_a_process(name, job, number)
            results[name].append(found)
            if name == "bigmodel" and job.precision == "auto":
                job = dataclasses.replace(job, precision=found["precision"])  # the same for everybody from now on
            print(
                f"round {number + 1}  {name:<13} {found['samples_per_s']:7.1f} samples/s", file=sys.stderr, flush=True
            )
    return results


def in_a_process(name: str, job: Job, number: int) -> dict[str, Any]:
    threads = {
        "OMP_NUM_THREADS": str(job.threads),
        "MKL_NUM_THREADS": str(job.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, __file__, "--contend", name, json.dumps(dataclasses.asdict(job)), str(number)]
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over the rounds; the ratio is the median of the rounds' own ratios."""
    lines = [
        "| trained by | samples/s | bigmodel is | accuracy | precision | whole process |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        rates = [one["samples_per_s"] for one in found]
        spread = f" ({min(rates):.0f} to {max(rates):.0f})" if len(rates) > 1 else ""
        ratio = ""
        if name != "bigmodel" and "bigmodel" in results:
            ours = [one["samples_per_s"] for one in results["bigmodel"]]
            ratio = f"{statistics.median(a / b for a, b in zip(ours, rates, strict=True)):.2f}x"
        accuracy = statistics.median(one["accuracy"] for one in found)
        wall = statistics.median(one["wall_s"] for one in found)
        row = (CONTENDERS[name], f"{statistics.median(rates):.0f}{spread}", ratio, f"{accuracy:.4f}")
        lines.append("| " + " | ".join((*row, found[-1]["precision"], f"{wall:.0f} s")) + " |")
    return "\n".join(lines)


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    if sys.argv[1:2] == ["--contend"]:
        name, job, number = sys.argv[2:]
        print(json.dumps(contend(name, Job(**json.loads(job)), int(number))))
        return
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="encoder")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all for the encoder, else two")
    parser.add_argument("--rows", type=int, help="training rows; default: all, or 6,212 with --lengthen")
    parser.add_argument("--lengthen", action="store_true", help="texts of the lengths of hotel reviews")
    parser.add_argument("--epochs", type=int, default=3, help="the first is the warm-up (default 3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: what bigmodel chooses"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write every round's numbers here, as JSON")
    asked = parser.parse_args()
    if asked.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is the warm-up")
    names = asked.contenders or (list(CONTENDERS) if asked.model == "encoder" else ["bigmodel", "hand"])
    if asked.precision == "auto" and names[0] != "bigmodel":
        parser.error("--precision auto is bigmodel's choice: name bigmodel first, or say fp32 or bf16")

    with tempfile.TemporaryDirectory() as folder:
        what = prepare(Path(folder), asked.rows, asked.lengthen, asked.seed)
        job = Job(folder, asked.model, asked.epochs, asked.threads, asked.precision, asked.seed)
        print(f"Data: {what}.")
        print(f"Model: {asked.model} {MODELS[asked.model]}; batch {job.batch_size}, Adam, learning rate {job.lr:g}.")
        cores, load = os.cpu_count(), os.getloadavg()[0]
        print(f"Machine: {processor_name()}, {asked.threads} threads of {cores} cores, load {load:.1f} at the start.")
        results = contest(names, job, asked.rounds)
    print(f"Median of {asked.rounds} interleaved rounds of {asked.epochs} epochs, the first of each not counted.\n")
    print(table(results))
    if asked.output:
        asked.output.write_text(
            json.dumps({"data": what, "job": dataclasses.asdict(job), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
