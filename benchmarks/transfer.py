r"""Does the learning rate found on a narrow model hold for a wide one? Standard and maximal update parametrisation.

    python benchmarks/transfer.py --processes 2                  docs/transfer_encoder.svg and a table; 15 to 25 minutes
    python benchmarks/transfer.py --model decoder --widths 64 256 512 --seeds 1 --steps 120 --length 32 \
        --batch 12 --powers -13 -6                               docs/transfer_decoder.svg
    python benchmarks/transfer.py --widths 64 128 --steps 20     does it work?

Two layers of several widths, heads of 64, no dropout, learn from scratch with bigmodel's own loop: encoders the
opinions of waimai_10k, decoders the next character of Tiny Shakespeare. Adam with its defaults, gradients clipped at 1,
a rate that is constant after the warm-up, less than one epoch, so that every batch is new. All runs of a seed see the
same batches; narrow models, which are cheap and noisy, get more seeds. The loss is the mean over the last quarter of
the steps, then over the seeds; the best rate is the vertex of the parabola fitted to the five rates around the lowest
loss. At the base width, 64, both parametrisations are the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reviews
import task_data

BASE = 64
DOCS = Path(__file__).parents[1] / "docs"
NAMES = {"standard": "standard parametrisation", "mup": "maximal update parametrisation"}
Curve = dict[float, float]  # learning rate -> loss


class Job(NamedTuple):
    parametrisation: str
    width: int
    lr: float
    seed: int


def run(jobs: Sequence[Job], options: dict[str, Any], processes: int, results: Path | None) -> dict[Job, float]:
    losses = {}
    if results and results.exists():
        losses = {Job(*job): loss for *job, loss in json.loads(results.read_text("utf-8"))}
    missing = [job for job in jobs if job not in losses]
    if not missing:
        return losses
    with tempfile.TemporaryDirectory() as folder:
        if options["model"] == "decoder":
            what = task_data.write("text-generation", Path(folder), 10_000, seed=0)
        else:
            rows, _, what = reviews.reviews(seed=0)
            reviews.write(Path(folder, "train.csv"), rows)
        print(f"{len(missing)} runs on {what}", flush=True)
        learn(missing[-1], folder, options | {"steps": 1})  # prepares the data
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            waiting = {pool.submit(learn, job, folder, options): job for job in missing}
            for future in as_completed(waiting):
                job, loss = waiting[future], future.result()
                losses[job] = loss
                print(*job, f"{loss:.4f}", flush=True)
                if results:
                    results.write_text(json.dumps([[*job, loss] for job, loss in losses.items()]), "utf-8")
    return losses


def learn(job: Job, folder: str, options: dict[str, Any]) -> float:
    """The training loss at the end; infinite where it is no number."""
    import torch

    from bigmodel.data.prepare import prepare
    from bigmodel.training.trainer import Trainer, Worker

    torch.set_num_threads(1)
    wanted = experiment(job, folder, options)
    trainer = Trainer(wanted, prepare(wanted), Worker())
    trainer.wrap()
    losses = [trainer.step()["loss"].item() for _ in range(options["steps"])]
    loss = statistics.mean(losses[-max(1, options["steps"] // 4) :])
    return loss if math.isfinite(loss) else math.inf


def experiment(job: Job, folder: str, options: dict[str, Any]) -> Any:
    from bigmodel.experiment import Experiment

    return Experiment.model_validate(
        {
            "mup": {"hidden_size": BASE if job.parametrisation == "mup" else None},
            "optim": {"lr": job.lr, "schedule": "constant", "warmup": options["warmup"]},
            "train": {"batch_size": options["batch"], "seed": job.seed, "precision": "fp32", "epochs": 1},
            **MODELS[options["model"]](job.width, folder, options["length"]),
        }
    )


def encoder(width: int, folder: str, length: int) -> dict[str, Any]:
    return {
        "task": "text-classification",
        "data": {
            "train": f"{folder}/train.csv",
            "text": "text",
            "label": "label",
            "max_length": length,
            "split": {"valid": 0.0, "test": 0.0},
            "cache": f"{folder}/prepared",
        },
        "model": {
            "type": "transformer",
            "hidden_size": width,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    }


def decoder(width: int, folder: str, length: int) -> dict[str, Any]:
    return {
        "task": "text-generation",
        "data": {
            "train": f"{folder}/train.txt",
            "max_length": length,
            "split": {"by": "position", "valid": 0.0, "test": 0.0},
            "tokenizer": {"type": "char"},
            "cache": f"{folder}/prepared",
        },
        "model": {
            "type": "transformer",
            "hidden_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": width // 64,
            "intermediate_size": 3 * width,
        },
    }


MODELS = {"encoder": encoder, "decoder": decoder}


def best(curve: Curve) -> float:
    """The rate at the vertex of the parabola, over log lr, that fits the lowest point and two on either side best.

    Where the lowest point has no neighbour on one side, it is that point: the true one may lie beyond.
    """
    rates = sorted(rate for rate in curve if math.isfinite(curve[rate]))
    lowest = min(range(len(rates)), key=lambda i: curve[rates[i]])
    if lowest in (0, len(rates) - 1):
        return rates[lowest]
    around = rates[max(0, lowest - 2) : lowest + 3]
    square, linear, _ = np.polyfit(np.log2(around), [curve[rate] for rate in around], 2)
    return float(2 ** (-linear / (2 * square)))


def draw(curves: dict[str, dict[int, Curve]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "transfer", "svg.fonttype": "none"}  # the same file for the same losses
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, sharey=True, layout="constrained")
    shown = [loss for of in curves.values() for curve in of.values() for loss in curve.values() if math.isfinite(loss)]
    for axis, (name, of_width) in zip(axes, curves.items(), strict=True):
        for number, (width, curve) in enumerate(sorted(of_width.items())):
            color = plt.get_cmap("viridis")(number / max(1, len(of_width) - 1) * 0.9)
            axis.plot(list(curve), list(curve.values()), "o-", ms=3, lw=1.2, color=color, label=f"width {width}")
            axis.axvline(best(curve), color=color, lw=0.8, ls=":")
        axis.set(title=NAMES[name], xlabel="learning rate")
        axis.set_xscale("log", base=2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("training loss at the end")
    lowest, highest = min(shown), min(max(shown), 2 * statistics.median(shown) - min(shown))
    margin = (highest - lowest) / 20
    axes[0].set_ylim(lowest - margin, highest + margin)
    axes[1].plot([], [], ":", color="grey", label="best rate")
    axes[1].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def table(curves: dict[str, dict[int, Curve]]) -> str:
    widths = sorted(curves["mup"])
    lines = [f"{'best rate at width':32}" + "".join(f"{width:>10}" for width in widths) + f"{'ratio':>8}"]
    for name, of_width in curves.items():
        rates = [best(of_width[width]) for width in widths]
        beyond = "> " if rates[-1] == min(of_width[widths[-1]]) else ""  # the grid does not go as low as the best rate
        ratio = f"{beyond}{rates[0] / rates[-1]:.2f}"
        lines.append(f"{NAMES[name]:32}" + "".join(f"{rate:10.2e}" for rate in rates) + f"{ratio:>8}")
        losses = "".join(f"{min(of_width[width].values()):10.4f}" for width in widths)
        lines.append(f"{'  lowest loss':32}{losses}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="encoder")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--powers", type=int, nargs=2, default=[-15, -8], help="rates are 2^first .. 2^last")
    parser.add_argument("--seeds", type=int, default=3, help="of the two widest; twice as many for the next, and so on")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=24, help="tokens read of each text")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, help="the picture; by default docs/transfer_MODEL.svg")
    parser.add_argument(
        "--results", type=Path, help="a file of losses: written after each run, and what it holds is not run again"
    )
    args = parser.parse_args(arguments)
    output = args.output or DOCS / f"transfer_{args.model}.svg"
    options = {
        "model": args.model,
        "steps": args.steps,
        "warmup": args.steps // 10,
        "batch": args.batch,
        "length": args.length,
    }
    rates = [2.0**power for power in range(args.powers[0], args.powers[1] + 1)]
    widths = sorted(args.widths, reverse=True)
    seeds = {width: range(args.seeds * 2 ** max(0, i - 1)) for i, width in enumerate(widths)}
    jobs = [
        Job(name, width, rate, seed)
        for width in widths  # the longest first
        for seed in seeds[width]
        for name in NAMES
        if width != BASE or name == "mup"
        for rate in rates
    ]
    began = time.perf_counter()
    losses = run(jobs, options, args.processes, args.results)
    curves: dict[str, dict[int, Curve]] = {name: {} for name in NAMES}
    for name in NAMES:
        for width in widths:
            known = "mup" if width == BASE else name
            curves[name][width] = {
                rate: statistics.mean(losses[Job(known, width, rate, seed)] for seed in seeds[width]) for rate in rates
            }
    draw(curves, output)
    print(table(curves))
    print(f"{options}, seeds by width { ({width: len(seeds[width]) for width in widths}) }; {output}")
    print(f"{time.perf_counter() - began:.0f} s, {args.processes} processes of one thread")


if __name__ == "__main__":
    main()
