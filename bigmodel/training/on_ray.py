"""Training on N workers of Ray Train. It starts them, gives them a process group, and starts them anew when one dies.

The only importer of ray.train. Nothing goes through `ray.train.report`, which takes one report in two seconds and keeps
no metrics without a checkpoint. Ray Train's controller opens this file too: what is heavy, the workers alone import.
"""

from __future__ import annotations

import platform
import shutil
import time
from pathlib import Path
from typing import Any

from bigmodel import cluster
from bigmodel.errors import ConfigError, Interrupted, Preempted, ResourceError, TrainingError, last_line
from bigmodel.experiment import Experiment
from bigmodel.imports import lighten
from bigmodel.training import setback
from bigmodel.training.events import Listener, Tail
from bigmodel.training.run import STOP, Run

SHARED = "the output folder and data.cache must lie on storage that all nodes of the cluster share (BIGMODEL_HOME)"
WAIT_S = 240  # for room for the workers, once it has been taken away
GROW_S = 30.0  # between two looks whether there is room for more of them


def train(experiment: Experiment, prepared: Path, run: Path, listener: Listener) -> dict[str, Any]:
    """N workers of Ray Train, on a Ray of our own or the one RAY_ADDRESS names; started anew from the last checkpoint
    when one is lost, `train.retries` times."""
    listener({"kind": "say", "line": "starting Ray"})
    ours = cluster.connect()
    import ray

    try:
        scaling = _scaling(experiment, ray.cluster_resources())
        with Tail(Run(run).events, listener), setback.Heard(run, listener):
            return _through_losses(experiment, prepared, run, scaling)
    finally:
        if ours:
            ray.shutdown()


def _scaling(experiment: Experiment, available: dict[str, float]) -> dict[str, Any]:
    """What each worker gets; ResourceError if the cluster has not so much, before anything waits for it."""
    train, least = experiment.train, experiment.train.least_workers
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    use_gpu = train.device == "cuda" or (train.device == "auto" and gpus >= least)
    if use_gpu and gpus < least:
        raise ResourceError(f"train.workers is {train.workers} with a GPU each; the cluster has {gpus:g} GPUs")
    threads = train.threads_of(int(cpus // train.most_workers))
    if cpus < least * threads:
        each = f", of {threads} threads each" if threads > 1 else ""
        raise ResourceError(
            f"train.workers is {train.workers}{each}; the cluster has {cpus:g} CPUs. "
            f"Ask for at most {int(cpus // threads)} workers, or add nodes"
        )
    return {
        "threads": threads,
        "use_gpu": use_gpu,
        "resources_per_worker": {"CPU": threads} | ({"GPU": 1} if use_gpu else {}),
    }


def _through_losses(experiment: Experiment, prepared: Path, run: Path, scaling: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train does not do by itself: begin anew where its controller has died, or a node had to be left."""
    from ray.exceptions import RayActorError

    died = 0
    while True:
        try:
            result = _trainer_result(experiment, prepared, run, scaling)
        except RayActorError as e:
            died += 1
            if died > experiment.train.retries:
                raise TrainingError(f"Ray Train's controller died {died} times; the last checkpoint stays") from e
            cluster.release_orphans()
            setback.note(run, "Ray Train's controller died")
            continue
        if "preempted" not in result:
            return result


def _trainer_result(experiment: Experiment, prepared: Path, run: Path, scaling: dict[str, Any]) -> dict[str, Any]:
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    train, least, most = experiment.train, experiment.train.least_workers, experiment.train.most_workers
    config = {
        "experiment": experiment.model_dump(mode="json"),
        "prepared": str(prepared),
        "run": str(run),
        "threads": scaling["threads"],
    }
    trainer = TorchTrainer(
        _work,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=train.timeout),
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            use_gpu=scaling["use_gpu"],
            resources_per_worker=scaling["resources_per_worker"],
            elastic_resize_monitor_interval_s=GROW_S,
        ),
        run_config=RunConfig(
            name=f"{run.name}-{time.time_ns()}",  # ours are the checkpoints: Ray has nothing to resume
            storage_path=str(run / "ray"),
            failure_config=FailureConfig(max_failures=train.retries, controller_failure_limit=-1),
            callbacks=[_notes(run), cluster.patience(WAIT_S)],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result: dict[str, Any] = vars(cluster.lighter(trainer).fit())["return_value"]
    except ControllerError as e:
        raise TrainingError(
            f"Ray Train could not start {train.workers} workers; the last checkpoint stays: {last_line(e)}"
        ) from e
    except TrainingFailedError as e:
        what = _befallen(getattr(e, "worker_failures", None) or {0: e})
        raise TrainingError(f"training failed {train.retries + 1} times; the last checkpoint stays: {what}") from e
    finally:
        shutil.rmtree(run / "ray", ignore_errors=True)
    if "error" in result:
        raise TrainingError(result["error"])
    if "interrupted" in result:
        raise Interrupted(result["interrupted"])
    return result


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in each worker. A loss that is not a number would be so again: it is an answer, not a failure, and so
    is a stop that was asked for."""
    lighten()
    import ray.train.torch

    from bigmodel.training import loop
    from bigmodel.training.trainer import Worker

    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    rank, world = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, world, device, config["threads"], ray=True, leaves=cluster.leaving)
    if blind := _without(Path(config["prepared"]), rank, world):
        return {"error": f"{config['prepared']} is not to be seen on {', '.join(blind)}: {SHARED}"}
    experiment = Experiment.model_validate(config["experiment"])
    try:
        return loop.train(experiment, Path(config["prepared"]), Path(config["run"]), worker, lambda event: None)
    except (TrainingError, ConfigError) as e:
        return {"error": str(e)}
    except Preempted as e:
        if rank == 0:
            setback.note(Path(config["run"]), str(e))
        return {"preempted": str(e)}
    except Interrupted as e:
        if not (Path(config["run"]) / STOP).exists():
            raise  # a signal to this worker alone
        return {"interrupted": str(e)}


def _without(path: Path, rank: int, world: int) -> list[str]:
    """The workers' machines that do not see a folder: all learn it, so that none waits for those."""
    seen: list[str | None] = [None if path.is_dir() else platform.node()] * world
    if world > 1:
        from torch import distributed

        distributed.all_gather_object(seen, seen[rank])
    return sorted({name for name in seen if name})


def _notes(run: Path) -> Any:
    """Called by Ray Train's controller when workers fail."""
    from ray.train import UserCallback

    class Notes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            setback.note(run, _befallen(worker_exceptions))

    return Notes()


def _befallen(failures: dict[int, Exception]) -> str:
    """Who died; else what the first one says, whom the others may have followed."""
    from ray.exceptions import RayActorError

    died = [rank for rank, e in failures.items() if isinstance(getattr(e, "health_check_failure", e), RayActorError)]
    if died:
        return " and ".join(f"worker {rank}" for rank in sorted(died)) + " died, or the node did"
    rank, error = min(failures.items())
    what = last_line(error)
    if "by peer" in what:  # gloo's and NCCL's words: the connection was reset, or closed
        return f"worker {rank} lost the connection to another one, which died, or its node did"
    return f"worker {rank}: {what}"
