"""The same step by bigmodel, a hand-written loop and transformers.Trainer in turns, in one process: what each costs.

    python benchmarks/steps.py --task image-classification
    python benchmarks/steps.py --task text-generation --against hand --turns 20

A machine that others share is a tenth faster or slower from one minute to the next, which hides a few per cent between
two processes that run one after the other, as those of tasks.py do. Here the contenders take ten steps by turns, all of
them the same batches: what disturbs one disturbs the next. Whole steps count, and what a loop does between two of them;
bigmodel's is that of its command, with its log and its events. The hand-written loop takes part twice: how far its two
ratios lie apart tells how much the others mean. All share what bigmodel sets for a process (imports.lighten), which
favours the others. The Trainer groups sentences by length in its own way: translation has no steps of it that could be
compared. One thread: idle ones of one contender would take the core from another.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import task_data
from tasks import BARS, CONTENDERS, WORK, Job, Parts, experiment, judged, train_by_hand
from training import processor_name

AGAIN = "hand again"
BLOCK = 10  # steps in a row: the first one finds its caches full of another contender's numbers
WARM = 4  # turns that are not counted: most lengths of batches were seen


class Enough(BaseException):
    """Ends a contender's training where it stands."""


class Lane:
    """A contender in a thread of its own. It takes BLOCK steps when it is told to, and then waits."""

    def __init__(self, train: Callable[[Callable[[], None]], None], device: str) -> None:
        self._device = device
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._enough, self._steps = False, 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[train], daemon=True)
        self._thread.start()
        self._wait()

    def _run(self, train: Callable[[Callable[[], None]], None]) -> None:
        try:
            train(self._pause)
            raise AssertionError("there were too few steps")
        except Enough:
            pass
        except BaseException as e:
            self._error = e
            self._done.release()

    def _pause(self) -> None:
        self._steps += 1
        if self._steps % BLOCK != 1:
            return
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()
        self._done.release()
        self._go.acquire()
        if self._enough:
            raise Enough

    def turn(self) -> float:
        """Seconds a step."""
        begin = time.perf_counter()
        self._go.release()
        self._wait()
        return (time.perf_counter() - begin) / BLOCK

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._enough = True
        self._go.release()
        self._thread.join()


def bigmodel(job: Job, pause: Callable[[], None]) -> None:
    from bigmodel.training.fit import fit
    from bigmodel.training.trainer import Trainer

    usual = Trainer.step

    def step(trainer: Trainer) -> dict[str, object]:
        pause()
        return usual(trainer)

    Trainer.step = step  # type: ignore[method-assign]
    fit(experiment(job, "run"))


def hand(job: Job, pause: Callable[[], None]) -> None:
    train_by_hand(Parts(job), pause)


def trainer(job: Job, pause: Callable[[], None]) -> None:
    import usual_trainer

    usual_trainer.train(Parts(job), WORK[job.task], pause)


TRAIN = {"bigmodel": bigmodel, "hand": hand, AGAIN: hand, "trainer": trainer}


def contest(job: Job, names: list[str], turns: int) -> dict[str, list[float]]:
    """Seconds a step, of each turn that counts."""
    lanes = {name: Lane(partial(TRAIN[name], job), job.device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM + turns):
        for name, lane in lanes.items():
            found = lane.turn()
            if number >= WARM:
                seconds[name].append(found)
    for lane in lanes.values():
        lane.end()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=WORK, required=True)
    parser.add_argument("--against", nargs="*", choices=BARS, default=list(BARS), help="default: all")
    parser.add_argument("--turns", type=int, default=30, help="that count")
    parser.add_argument("--rows", type=int, help="training rows; of text-generation, windows")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()

    from bigmodel.imports import lighten

    lighten()
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32 for all
    against = [name for name in asked.against if name == "hand" or asked.task != "translation"]
    names = ["bigmodel", *against, *([AGAIN] if "hand" in against else [])]
    work = WORK[asked.task]
    load = os.getloadavg()[0]
    print(f"Machine: {processor_name()}, one thread of {os.cpu_count()} cores, load {load:.1f} at the start.")
    with tempfile.TemporaryDirectory() as folder:
        what = task_data.write(asked.task, Path(folder), asked.rows or work.rows, 0)
        job = Job(asked.task, folder, 1, asked.precision, epochs=1, device=asked.device)
        epochs = 1 + (WARM + asked.turns) * BLOCK // len(Parts(job).batches)
        job = dataclasses.replace(job, epochs=epochs + 1)  # nobody comes to an end
        print(f"Data: {what}. Model: {work.model}; batch {work.batch_size}, {asked.precision}.", flush=True)
        seconds = contest(job, names, asked.turns)
    print(f"Medians of {asked.turns} turns of {BLOCK} steps, load {os.getloadavg()[0]:.1f} at the end.\n")
    print("| trained by | ms a step | bigmodel's speed is |\n|---|---|---|")
    for name, found in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(seconds["bigmodel"], found, strict=True))
        bar = BARS["hand"] if name == AGAIN else BARS.get(name)
        cell = "" if bar is None else judged(ratio, bar, ".3f", "x")
        label = CONTENDERS.get(name, f"{CONTENDERS['hand']}, again")
        print(f"| {label} | {1e3 * statistics.median(found):.1f} | {cell} |")


if __name__ == "__main__":
    main()
