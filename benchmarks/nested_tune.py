"""The pattern of Ray's guide "Hyperparameter Tuning with Ray Tune": each trial is a driver that runs a TorchTrainer.

Where the guide leaves a choice, the one that suits two cores: drivers that reserve next to nothing, so that two trials
run at a time; ASHA and Optuna with the same settings as everybody's. The dashboard is on: without it the trials that
ASHA stops keep their cores (their placement groups are freed through its API), and the search stands still.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from training import Job
from trial_loop import GRACE, REDUCTION, SPACE, USUAL, Trial

DRIVER_CPU = 0.01


def train_fn_per_worker(config: dict[str, Any]) -> None:
    import torch
    from trial_loop import Rows, epochs, timed

    torch.set_num_threads(1)
    job = Job(**config["job"])
    rows = Rows(job)  # reads the CSV and tokenises it
    model = ray.train.torch.prepare_model(rows.model)
    params = {name: config[name] for name in SPACE}
    for value, seconds in timed(epochs(model, rows, params, job)):
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"accuracy": value, "seconds": seconds}, checkpoint=checkpoint)


def train_driver_fn(config: dict[str, Any]) -> None:
    trainer = TorchTrainer(
        train_fn_per_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1 - DRIVER_CPU}),
        run_config=ray.train.RunConfig(
            name=f"train-{ray.tune.get_context().get_trial_id()}",
            storage_path=f"{config['job']['folder']}/train",
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    trainer.fit()


def search(job: Job, trials: int | None, minutes: float | None, seed: int) -> tuple[list[Trial], float]:
    """-> the trials, and the seconds since the search began, Ray's start not counted."""
    connect(job.threads)
    start = time.perf_counter()
    space = {name: ray.tune.loguniform(low, high) for name, (low, high) in SPACE.items()}
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(train_driver_fn, {"cpu": DRIVER_CPU}),
        param_space=space | {"job": dataclasses.asdict(job)},
        tune_config=ray.tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=trials or -1,
            time_budget_s=None if minutes is None else minutes * 60,
            max_concurrent_trials=job.threads,
            search_alg=OptunaSearch(points_to_evaluate=[USUAL], seed=seed),
            scheduler=ASHAScheduler(max_t=job.epochs, grace_period=GRACE, reduction_factor=REDUCTION),
        ),
        run_config=ray.tune.RunConfig(name="search", storage_path=f"{job.folder}/tune", verbose=0),
    )
    results = tuner.fit()
    found = [as_trial(results[number], job.epochs) for number in range(len(results))]
    seconds = time.perf_counter() - start
    ray.shutdown()
    return found, seconds


def connect(cores: int) -> None:
    """A Ray of our own. Its workers are told its address, lest they find another one on this machine."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    os.environ |= {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": address}
    ray.init(address="local", num_cpus=cores, include_dashboard=True, log_to_driver=False)


def as_trial(result: Any, whole: int) -> Trial:
    params = {name: (result.config or {}).get(name) for name in SPACE}
    rows = result.metrics_dataframe
    if rows is None or "accuracy" not in rows:  # the time was over before its first epoch
        return Trial(params, "stopped" if result.error is None else "failed")
    curve = [float(value) for value in rows["accuracy"].dropna()]
    state = "failed" if result.error is not None else "finished" if len(curve) == whole else "stopped"
    return Trial(params, state, curve, float(rows["seconds"].max()))
