"""The same search by bigmodel, by Ray Tune with a nested TorchTrainer, and by Optuna in a loop, side by side.

    python benchmarks/search.py                                  16 trials of the TextCNN on waimai_10k, 3 rounds
    python benchmarks/search.py --minutes 10                     what accuracy does each reach in ten minutes?
    python benchmarks/search.py --rows 500 --trials 4 --epochs 2 --rounds 1         does it work?

All contenders search the learning rate and Adam's betas in the same ranges, with the experiment's own values as the
first trial, by TPE, and with trials that start from the same weights and see the same tokens. All judge by the accuracy
on the same held-out rows. Whoever stops trials early does so by successive halving with the same settings. Each has the
same cores: bigmodel and the nested pattern run a trial on each of them, the loop gives all of them to one trial.

The time is that of the whole process, from a cold start and an empty cache. Rounds are interleaved, each with another
seed of the search. "training" is the time that the trials spent in their loops, over how many ran at once: optimiser
steps and validations, of all contenders alike (of bigmodel those that its runs' events tell of, with the saving of new
best weights, which count as part of the validation). Building models and saving checkpoints is not training. "overhead"
is what the whole process took beyond that.
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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import training
from training import Job

if TYPE_CHECKING:
    from trial_loop import Trial

CONTENDERS = {
    "bigmodel": "bigmodel tune",
    "nested": "Ray Tune, nested TorchTrainer, ASHA",
    "nested-quick": "the same, polling its workers every 0.2 s",
    "optuna": "Optuna in a loop",
    "optuna-pruned": "Optuna in a loop, successive halving",
    "bigmodel-whole": "bigmodel tune, no trial stopped early",
}
USUALLY = ["bigmodel", "nested", "optuna", "optuna-pruned"]
NO_LIMIT = 10_000  # trials, where time is the limit
OVERHEAD = 0.10
BUSY = 0.5  # load at the start


@dataclasses.dataclass(frozen=True)
class Search:
    """What all contenders do: trials of `job`, so many of them or for so long."""

    job: Job
    trials: int | None
    minutes: float | None
    seed: int
    """Of the choice of values; the trials themselves have job.seed."""
    auto: bool
    """bigmodel finds its precision itself, and takes the time for it; job.precision is the others'."""


# ---- the contenders: each returns its trials and the seconds since its search began


def bigmodel(search: Search, whole: bool) -> dict[str, Any]:
    """The command, as a user types it. Its search begins with the first line of trials.jsonl."""
    from bigmodel.training.run import Run
    from tune_jobs import journal

    folder = Path(search.job.folder)
    precision = "auto" if search.auto else search.job.precision
    job = dataclasses.replace(search.job, threads=0, precision=precision)  # as many threads as a trial has cores
    wanted = training.experiment(job, "model").model_dump(mode="json")
    wanted["tune"] = {"candidates": 0, "max_concurrent": search.job.threads, "seed": search.seed}
    wanted["tune"] |= {"minutes": search.minutes or 0, "scheduler": "none" if whole else "asha"}
    file, log, lines = folder / "experiment.yaml", folder / "log.txt", folder / "model-tune" / "trials.jsonl"
    file.write_text(json.dumps(wanted), "utf-8")  # JSON is YAML

    command = [sys.executable, "-m", "bigmodel", "tune", str(file), "--trials", str(search.trials or NO_LIMIT)]
    begun = None
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            if begun is None and lines.exists() and lines.stat().st_size:
                begun = time.time()
            time.sleep(0.05)
    if process.returncode or begun is None:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text('utf-8', 'replace')[-4000:]}")
    found = []
    for t in journal.read(lines):
        run = Run(lines.parent / "trials" / f"{t.number:03}")
        seconds = run.seconds() + sum(validation["seconds"] for validation in run.validations())
        curve = [value for _, value in t.curve]
        found.append({"params": t.params, "state": t.state, "curve": curve, "seconds": seconds})
    return {"trials": found, "search_s": lines.stat().st_mtime - begun}


def other(name: str, search: Search) -> dict[str, Any]:
    asked = (search.job, search.trials, search.minutes, search.seed)
    trials: list[Trial]
    if name.startswith("optuna"):
        import optuna_loop

        trials, seconds = optuna_loop.search(*asked, pruned=name == "optuna-pruned")
    else:
        if name == "nested-quick":
            os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
        import nested_tune

        trials, seconds = nested_tune.search(*asked)
    return {"trials": [dataclasses.asdict(trial) for trial in trials], "search_s": seconds}


def precision(search: Search) -> dict[str, Any]:
    """What bigmodel's `auto` would choose, for the others; they need not time it themselves."""
    import hand_loop
    import torch
    from trial_loop import Rows

    from bigmodel.training.precision import choose

    torch.set_num_threads(1)  # as in a trial
    rows, size = Rows(search.job), search.job.batch_size
    batch, labels = hand_loop.collate(rows.input_ids[:size], rows.pad), torch.from_numpy(rows.labels[:size])
    choice, _ = choose(rows.model.train(), "cpu", lambda: rows.model(**batch, labels=labels).loss)
    return {"precision": choice}


# ---- the contest


def contest(names: Sequence[str], search: Search, rounds: int) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            found = in_a_process(name, dataclasses.replace(search, seed=search.seed + number))
            results[name].append(summary(name, found, search.job.threads))
            print(f"round {number + 1}  {name:<14} {described(results[name][-1])}", file=sys.stderr, flush=True)
    return results


def in_a_process(name: str, search: Search) -> dict[str, Any]:
    """In a folder of its own, with nothing left in it by others. -> what it found, `wall_s` of the whole process."""
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        for file in (search.job.train, search.job.held_out):
            os.link(file, Path(folder) / file.name)
        own = dataclasses.replace(search, job=dataclasses.replace(search.job, folder=folder))
        start = time.perf_counter()
        if name.startswith("bigmodel"):
            found = bigmodel(own, whole=name == "bigmodel-whole")
        else:
            answer = Path(folder) / "answer.json"
            command = [sys.executable, __file__, "--contend", name, json.dumps(dataclasses.asdict(own)), str(answer)]
            quiet = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            found = json.loads(answer.read_text("utf-8"))
        return found | {"wall_s": time.perf_counter() - start}


def contend(name: str, asked: str, answer: str) -> None:
    fields = json.loads(asked)
    search = Search(**fields | {"job": Job(**fields["job"])})
    found = precision(search) if name == "precision" else other(name, search)
    Path(answer).write_text(json.dumps(found), "utf-8")


def summary(name: str, found: dict[str, Any], cores: int) -> dict[str, Any]:
    trials = found["trials"]
    best = max((trial for trial in trials if trial["curve"]), key=lambda trial: max(trial["curve"]), default=None)
    if best is None:
        sys.exit(f"{name}: no trial has come to an accuracy: {trials}")
    seconds = sum(trial["seconds"] for trial in trials) / (1 if name.startswith("optuna") else cores)
    return found | {
        "accuracy": max(best["curve"]),
        "best": best["params"],
        "epochs": sum(len(trial["curve"]) for trial in trials),
        "training_s": seconds,
        "overhead": found["wall_s"] / seconds - 1,
    }


def described(one: dict[str, Any]) -> str:
    return (
        f"{len(one['trials'])} trials in {one['wall_s']:.1f} s ({one['search_s']:.1f} s without start-up), "
        f"training {one['training_s']:.1f} s, accuracy {one['accuracy']:.4f}"
    )


# ---- what is said in the end


def table(results: dict[str, list[dict[str, Any]]], timed: bool) -> str:
    """Medians over the rounds; the ratio is the median of the rounds' own ratios."""
    lines = [
        "| searched by | whole process | bigmodel is | without start-up | best accuracy "
        "| trials: whole, stopped, failed | epochs | training | overhead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        walls = [one["wall_s"] for one in found]
        spread = f" ({min(walls):.0f} to {max(walls):.0f})" if len(walls) > 1 else ""
        accuracies = [one["accuracy"] for one in found]
        reached = f" ({min(accuracies):.4f} to {max(accuracies):.4f})" if len(accuracies) > 1 else ""
        compared = "" if timed or name == "bigmodel" or "bigmodel" not in results else f"{faster(results, name):.2f}x"
        row = [
            CONTENDERS[name],
            f"{statistics.median(walls):.1f} s{spread}",
            compared,
            f"{median(found, 'search_s'):.1f} s",
            f"{statistics.median(accuracies):.4f}{reached}",
            ", ".join(f"{states(found, state):g}" for state in ("finished", "stopped", "failed")),
            f"{median(found, 'epochs'):g}",
            f"{median(found, 'training_s'):.1f} s",
            f"{median(found, 'overhead'):.0%}",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def bars(results: dict[str, list[dict[str, Any]]], timed: bool) -> str:
    """What was wanted, and what came."""
    if "bigmodel" not in results:
        return ""
    ours, others = results["bigmodel"], [name for name in results if not name.startswith("bigmodel")]
    lines = []
    if timed:
        for name in others:
            gain = statistics.median(a["accuracy"] - b["accuracy"] for a, b in zip(ours, results[name], strict=True))
            lines.append(verdict(f"accuracy at least that of {name}", f"{gain:+.4f}", gain >= 0))
    else:
        wanted = {"nested": 5.0, "optuna": 1.5}
        for name in (name for name in wanted if name in results):
            ratio = faster(results, name)
            lines.append(verdict(f"{wanted[name]:g}x {name}", f"{ratio:.2f}x", ratio >= wanted[name]))
        overhead = median(ours, "overhead")
        lines.append(verdict(f"overhead at most {OVERHEAD:.0%}", f"{overhead:.1%}", overhead <= OVERHEAD))
    return "\n".join(lines)


def verdict(wanted: str, came: str, reached: bool) -> str:
    return f"- {wanted}: {came}, {'reached' if reached else 'NOT reached'}"


def median(found: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(float(one[key]) for one in found)


def states(found: Sequence[dict[str, Any]], state: str) -> float:
    return statistics.median(float(sum(trial["state"] == state for trial in one["trials"])) for one in found)


def faster(results: dict[str, list[dict[str, Any]]], name: str) -> float:
    """How many times as long as bigmodel `name` takes for the same number of trials."""
    ours, theirs = ([float(one["wall_s"]) for one in results[who]] for who in ("bigmodel", name))
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    if sys.argv[1:2] == ["--contend"]:
        contend(*sys.argv[2:])
        return
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=USUALLY, metavar="NAME")
    parser.add_argument("--trials", type=int, help="of each contender (default 16; with --minutes: no limit)")
    parser.add_argument("--minutes", type=float, help="search so long, with as many trials as fit in")
    parser.add_argument("--rows", type=int, help="training rows (default: all)")
    parser.add_argument("--epochs", type=int, default=5, help="of a trial that is not stopped (default 5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores for each contender (default 2)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: what bigmodel chooses"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write every round's trials here, as JSON")
    asked = parser.parse_args()
    trials = asked.trials or (None if asked.minutes else 16)

    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        what = training.prepare(Path(folder), asked.rows, False, asked.seed)
        job = Job(folder, "textcnn", asked.epochs, asked.threads, asked.precision, asked.seed)
        search = Search(job, trials, asked.minutes, asked.seed, asked.precision == "auto")
        limits = [f"{trials} trials"] if trials else []
        limits += [f"{asked.minutes:g} minutes"] if asked.minutes else []
        print(f"Data: {what}.")
        print(f"Search: {' or '.join(limits)} of {asked.epochs} epochs, batch {job.batch_size}; textcnn, Adam.")
        cores, load = os.cpu_count(), os.getloadavg()[0]
        name = training.processor_name()
        print(f"Machine: {name}, {asked.threads} threads of {cores} cores, load {load:.1f} at the start.", flush=True)
        if load > BUSY:  # measured at a load of 6: a sixth of the speed of one thread
            print(
                "Others compute here: two threads of one trial wait for each other, and the loop's times mean nothing."
            )
        results = contest(asked.contenders, with_precision(search), asked.rounds)
    print(f"Median of {asked.rounds} interleaved rounds.\n")
    print(table(results, bool(asked.minutes)), bars(results, bool(asked.minutes)), sep="\n\n")
    if asked.output:
        asked.output.write_text(
            json.dumps({"data": what, "search": dataclasses.asdict(search), "results": results}, indent=1)
        )


def with_precision(search: Search) -> Search:
    """The others get bigmodel's choice, made before the clock runs."""
    if not search.auto:
        return search
    choice = in_a_process("precision", search)["precision"]
    print(f"Precision: {choice}, bigmodel's choice for this model and processor.", flush=True)
    return dataclasses.replace(search, job=dataclasses.replace(search.job, precision=choice))


if __name__ == "__main__":
    main()
