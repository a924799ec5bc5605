"""The same model, rows and steps trained by bigmodel, a hand-written loop and transformers.Trainer, task by task.

    python benchmarks/tasks.py --task image-classification             a small residual network on MNIST
    python benchmarks/tasks.py --task translation                      Marian's architecture on Multi30k
    python benchmarks/tasks.py --task text-generation                  a small Llama on Tiny Shakespeare
    python benchmarks/tasks.py --task tabular-classification           a perceptron on Adult
    python benchmarks/tasks.py --task translation --rows 200 --rounds 1     does it work?
    python benchmarks/tasks.py --task translation --start              seconds from the command to the first step
    python benchmarks/tasks.py --preparation                           images/s of the preparation of MNIST

Where BIGMODEL_DATA names no folder with these, rows are generated, which is said. All contenders open the same prepared
data, start from the same weights, take the same number of steps of as many rows with Adam, clipping and the same
learning rates, in the same precision; each has a process of its own with the same number of threads; rounds are
interleaved, so that a noisy minute disturbs all of them. The hand-written loop takes the very batches that bigmodel
takes, from tensors in memory. The Trainer has its best settings: grouped by length, or packed.

The speed is that between the end of step 20 and the end of the last one, by the clock, without checkpoints and
validations: all that happens in between counts. Beside it stands the speed by the CPU time of the process, which on a
busy machine says more; with --threads 1 no thread burns time waiting for another. On a GPU (--device cuda) the clock
alone counts. The loss is that of the last weights on rows that nobody trained on, by the same function for all. Needs
the extra `bench` (accelerate, for the Trainer).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import preparation
import start
import task_data
from training import processor_name

CONTENDERS = {
    "bigmodel": "bigmodel",
    "hand": "hand-written torch loop, same batches",
    "trainer": "transformers.Trainer, its best settings",
}
BARS = {"hand": 0.97, "trainer": 1.25}
REAL = 0.92  # of the tokens that are computed, the part that is no padding
WARM = 20  # steps that are not counted
NEVER = 10**9


@dataclass(frozen=True)
class Work:
    """What is trained for a task, and how fast it is said to be."""

    data: dict[str, Any]
    model: dict[str, Any]
    batch_size: int
    lr: float
    rows: int
    unit: str
    epochs: int = 2


WORK = {
    "image-classification": Work(
        {"train": "train.parquet", "valid": "valid.parquet", "image": "image", "label": "label"},
        {"type": "cnn", "hidden_sizes": [16, 32, 64]},
        batch_size=64, lr=3e-3, rows=15_000, unit="images",
    ),
    "translation": Work(
        {"train": "train.csv", "valid": "valid.csv", "source": "source", "target": "target", "max_length": 96,
         "tokenizer": {"vocab_size": 8000}},
        {"type": "transformer", "encoder_ffn_dim": 512, "decoder_ffn_dim": 512},
        batch_size=64, lr=1e-3, rows=4_000, unit="tokens",
    ),
    "text-generation": Work(
        {"train": "train.txt", "valid": "valid.txt", "max_length": task_data.WINDOW, "tokenizer": {"type": "char"}},
        {"type": "transformer"},
        batch_size=16, lr=4e-3, rows=1_500, unit="tokens",
    ),
    "tabular-classification": Work(
        {"train": "train.csv", "valid": "valid.csv", "label": "income"},
        {"type": "tabular_mlp"},
        batch_size=256, lr=1e-3, rows=30_000, unit="rows", epochs=20,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What all contenders do."""

    task: str
    folder: str
    threads: int
    precision: str
    epochs: int
    seed: int = 0
    device: str = "cpu"


def experiment(job: Job, output: str) -> Any:
    from bigmodel.experiment import Experiment

    work, folder = WORK[job.task], Path(job.folder)
    files = {split: str(folder / work.data[split]) for split in ("train", "valid")}
    return Experiment.model_validate(
        {
            "task": job.task,
            "data": {**work.data, **files, "split": {"valid": 0, "test": 0}, "cache": str(folder / "prepared")},
            "model": work.model,
            "optim": {"type": "adam", "lr": work.lr, "schedule": "cosine", "warmup": 50, "clip": 1.0},
            "train": {
                "epochs": job.epochs, "batch_size": work.batch_size, "threads": job.threads, "device": job.device,
                "precision": job.precision, "seed": job.seed, "validate_every": NEVER, "checkpoint_every": NEVER,
            },
            "output": str(folder / output),
        }
    )  # fmt: skip


class Parts:
    """What bigmodel makes of the job, for the others to use: model, processor, samples, order."""

    def __init__(self, job: Job) -> None:
        from bigmodel.data.prepare import prepare
        from bigmodel.training.trainer import Trainer, Worker

        self.job, self.wanted = job, experiment(job, "unused")
        self.prepared = prepare(self.wanted)
        trainer = Trainer(self.wanted, self.prepared, Worker(device=job.device))
        self.task, self.processor, self.samples = trainer.task, trainer.processor, trainer.samples
        self.batches = [trainer.order.batch(step) for step in range(trainer.total_steps)]
        self.lengths, self.warmup = trainer.order.lengths, trainer.warmup
        self.model = trainer.model

    def counted(self, steps: Sequence[int] | None = None) -> int:
        """Rows, or real tokens, of the steps that are counted."""
        chosen = self.batches[WARM:] if steps is None else [self.batches[step] for step in steps]
        if WORK[self.job.task].unit != "tokens":
            return sum(map(len, chosen))
        return int(sum(self.lengths[ids].sum() for ids in chosen))

    def loss(self, model: Any) -> float:
        """Mean over the targets of the held-out rows, in fp32."""
        import torch

        samples = self.task.examples(self.prepared.samples("valid"), self.wanted)
        total = targets = 0.0
        model.cpu().eval()
        with torch.inference_mode():
            for start in range(0, len(samples), 32):
                chosen = samples.take(torch.arange(start, min(start + 32, len(samples))).numpy())
                batch = self.task.collate(chosen, self.processor)
                total += float(self.task.loss(model, batch, self.wanted))
                targets += self.task.num_targets(batch)
        return total / targets


# ---- the contenders: each returns its speed, the loss, and its precision


def bigmodel(job: Job, number: int) -> dict[str, Any]:
    from bigmodel.predictor import Predictor
    from bigmodel.training.fit import fit

    steps: list[tuple[Mark, dict[str, Any]]] = []
    precision = job.precision

    def listen(event: dict[str, Any]) -> None:
        nonlocal precision
        if event["kind"] == "step":
            steps.append((now(), event))
        if event["kind"] == "decision" and event["what"] == "precision":
            precision = event["choice"]

    run = fit(experiment(job, f"run-{number}"), listener=listen)
    parts = Parts(job)
    # steps are told some at a time: those that come together took until then
    first = next(at for at, event in steps if event["step"] >= WARM)
    counted = [event for at, event in steps if at.wall > first.wall + 1e-3]
    amount = parts.counted([event["step"] - 1 for event in counted])
    real = sum(event["tokens"] for event in counted) / sum(event["padded"] for event in counted)
    loss = parts.loss(Predictor.load(run.model).model)
    return rates(amount, first, steps[-1][0]) | {"loss": loss, "precision": precision, "real": real}


def hand(job: Job, number: int) -> dict[str, Any]:
    parts = Parts(job)
    marks = Marks(job.device, len(parts.batches))
    train_by_hand(parts, marks.add)
    return result(parts, marks)


def train_by_hand(parts: Parts, done: Callable[[], None]) -> None:
    import hand_tasks
    import torch

    job = parts.job
    hand_tasks.train(
        parts.model,
        hand_tasks.BATCHES[job.task](parts.samples, parts.processor),
        [torch.from_numpy(ids) for ids in parts.batches],
        lr=WORK[job.task].lr,
        warmup=parts.warmup,
        precision=job.precision,
        seed=job.seed,
        done=done,
    )


def trainer(job: Job, number: int) -> dict[str, Any]:
    import usual_trainer

    parts = Parts(job)
    marks = Marks(job.device, len(parts.batches))
    amounts = usual_trainer.train(parts, WORK[job.task], marks.add)
    return result(parts, marks, sum(amounts[WARM : len(marks)]))


class Mark(NamedTuple):
    """Seconds by the clock, and of computing by all threads of this process."""

    wall: float
    cpu: float


def now() -> Mark:
    return Mark(time.perf_counter(), time.process_time())


class Marks(list[Mark]):
    """Of the end of each step; a GPU is waited for at the two that are counted from and to."""

    def __init__(self, device: str, steps: int) -> None:
        self._device, self._steps = device, steps

    def add(self) -> None:
        if self._device != "cpu" and len(self) + 1 in (WARM, self._steps):
            import torch

            torch.cuda.synchronize()
        self.append(now())


def rates(amount: float, begin: Mark, end: Mark) -> dict[str, float]:
    return {"rate": amount / (end.wall - begin.wall), "per_cpu_s": amount / (end.cpu - begin.cpu)}


def result(parts: Parts, marks: Marks, amount: float | None = None) -> dict[str, Any]:
    assert len(marks) == len(parts.batches), f"{len(marks)} steps were taken, not {len(parts.batches)}"
    found = rates(parts.counted() if amount is None else amount, marks[WARM - 1], marks[-1])
    return found | {"loss": parts.loss(parts.model), "precision": parts.job.precision}


def contend(name: str, job: Job, number: int) -> dict[str, Any]:
    if name == "bigmodel":
        from bigmodel.imports import lighten

        lighten()  # as its command does
    import torch

    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32 for all
    return {"bigmodel": bigmodel, "hand": hand, "trainer": trainer}[name](job, number)


# ---- the contest


def contest(job: Job, names: Sequence[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            found = in_a_process(["--contend", name, json.dumps(dataclasses.asdict(job)), str(number)], job.threads)
            results[name].append(found)
            job = dataclasses.replace(job, precision=found["precision"])  # the same for everybody from now on
            rate = f"{found['rate']:10,.0f} {WORK[job.task].unit}/s"
            print(f"round {number + 1}  {name:<9}{rate}  load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return results


def in_a_process(arguments: Sequence[str], threads: int) -> Any:
    """This file with other arguments, and the JSON that it prints last."""
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments[:2])} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, list[dict[str, Any]]], unit: str) -> str:
    """Medians over the rounds; a ratio is the median of the rounds' own ratios."""
    lines = [
        f"| trained by | {unit}/s | bigmodel is | {unit} per CPU second | bigmodel is | held-out loss |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        cells = [CONTENDERS[name]]
        for speed in ("rate", "per_cpu_s"):
            speeds = [one[speed] for one in found]
            spread = f" ({min(speeds):,.0f} to {max(speeds):,.0f})" if len(speeds) > 1 else ""
            cells += [f"{statistics.median(speeds):,.0f}{spread}", ratio(name, results["bigmodel"], found, speed)]
        cells.append(f"{statistics.median(one['loss'] for one in found):.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    if unit == "tokens":
        real = results["bigmodel"][-1]["real"]
        lines.append(f"\nReal tokens among those computed: {judged(real, REAL, '.3f')}")
    return "\n".join(lines)


def ratio(name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], speed: str) -> str:
    if name == "bigmodel":
        return ""
    found = statistics.median(a[speed] / b[speed] for a, b in zip(ours, theirs, strict=True))
    return judged(found, BARS[name], ".2f", "x")


def judged(found: float, bar: float, form: str, unit: str = "") -> str:
    return f"{found:{form}}{unit} (bar {bar:g}{'' if found >= bar else ', MISSED'})"


def main() -> None:
    if sys.argv[1:2] == ["--contend"]:
        name, job, number = sys.argv[2:]
        print(json.dumps(contend(name, Job(**json.loads(job)), int(number))))
        return
    asked = arguments()
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(f"Machine: {processor_name()}, {asked.threads} threads of {cores} cores, load {load:.1f} at the start.")
    with tempfile.TemporaryDirectory() as folder:
        if asked.preparation:
            print(preparation.measured(Path(folder), asked.rounds, asked.threads))
            return
        work = WORK[asked.task]
        what = task_data.write(asked.task, Path(folder), asked.rows or work.rows, asked.seed)
        epochs = asked.epochs or work.epochs
        job = Job(asked.task, folder, asked.threads, asked.precision, epochs, asked.seed, asked.device)
        print(f"Data: {what}. Model: {work.model}; batch {work.batch_size}, {job.epochs} epochs.", flush=True)
        if asked.start:
            print(start.measured(experiment(job, "start"), asked.rounds))
            return
        results = contest(job, ["bigmodel", *asked.against], asked.rounds)
    print(f"Median of {asked.rounds} interleaved rounds, {results['bigmodel'][-1]['precision']}.\n")
    print(table(results, work.unit))
    if asked.output:
        asked.output.write_text(json.dumps({"data": what, "task": asked.task, "results": results}, indent=1))


def arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=WORK)
    parser.add_argument("--against", nargs="*", choices=BARS, default=list(BARS), help="default: all")
    parser.add_argument("--rows", type=int, help="training rows; of text-generation, windows; default: half a minute's")
    parser.add_argument("--epochs", type=int, help="default: 2, of a table 20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: what bigmodel chooses"
    )
    parser.add_argument("--start", action="store_true", help="measure how long the first step takes to come")
    parser.add_argument("--preparation", action="store_true", help="measure how fast images are prepared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write every round's numbers here, as JSON")
    asked = parser.parse_args()
    if asked.task is None and not asked.preparation:
        parser.error(f"name a --task: {', '.join(WORK)}")
    return asked


if __name__ == "__main__":
    main()
