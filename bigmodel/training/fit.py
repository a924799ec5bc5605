"""fit(experiment) -> Run: prepare, train in this process or on N workers of Ray Train, leave the best model behind.

The only importer of ray.train. Ray Train starts the workers, gives them a process group and starts them anew when one
dies; what they do, what they save and what they report is the loop's, the same with and without Ray: nothing goes
through `ray.train.report`, which takes one report in two seconds and keeps no metrics without a checkpoint.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from bigmodel import cluster
from bigmodel.data.prepare import Prepared, open_prepared, prepare
from bigmodel.errors import CheckpointError, Interrupted, Preempted, ResourceError, TrainingError
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor
from bigmodel.tasks.base import as_judged
from bigmodel.training import loop, setback
from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.events import Event, Listener, Tail
from bigmodel.training.loop import STOP, Trainer, Worker
from bigmodel.training.run import Run
from bigmodel.training.saver import BEST

SHARED = "the output folder and data.cache must lie on storage that all nodes of the cluster share (BIGMODEL_HOME)"
WAIT_S = 240  # for room for the workers, once it has been taken away
GROW_S = 30.0  # between two looks whether there is room for more of them
GOLDEN = 8  # validation rows stored with their answers in the model directory


def fit(experiment: Experiment, fresh: bool = False, listener: Listener = lambda event: None) -> Run:
    """Train the experiment to its end, or go on where it was; a finished run is returned as it is.

    Raises ConfigError if the output folder holds another experiment, DataError, ResourceError, TrainingError,
    Interrupted.
    """
    return loop.finish(fit_in_parts(experiment, fresh, listener, settled=False))


def fit_in_parts(
    experiment: Experiment,
    fresh: bool = False,
    listener: Listener = lambda event: None,
    prepared: Path | None = None,
    settled: bool = True,
    decisions: Mapping[str, Any] = MappingProxyType({}),
) -> Generator[Event, None, Run]:
    """`fit` that hands over each validation but the last, to a caller that may leave it there and come back later.

    On workers of Ray Train it goes through in one part. `prepared` is the folder of data prepared before. A caller that
    does not look into the run's folder meanwhile need not wait for each checkpoint: `settled` false. `decisions`, as in
    run.json, are those that a new run need not make itself.
    """
    run = Run(experiment.output_path)
    run.lock()
    begun = False
    try:
        run.refuse_strangers()
        if not fresh:
            run.refuse_another(experiment)
        agree = None if fresh else run.refuse_other_data  # before anything of the run in the folder is replaced
        data = open_prepared(prepared) if prepared else prepare(experiment, say(listener), agree)
        listener({"kind": "prepared", "fresh": data.fresh, "path": str(data.path), **data.counts})
        if fresh:
            run.clear()  # not before the new run can start
        run.begin(experiment, data.fingerprint, data.path, versions(), decisions)
        begun = not run.finished
        if run.finished:
            listener({"kind": "say", "line": f"{run.path}: finished before, not trained again. --fresh starts over"})
        else:
            (run.path / STOP).unlink(missing_ok=True)
            _finish(experiment, data, run, (yield from _train(experiment, data, run, listener, settled)))
    except BaseException as e:
        if begun:
            left = isinstance(e, (Interrupted, KeyboardInterrupt, GeneratorExit))
            run.write(state="interrupted" if left else "failed")
        raise
    finally:
        run.unlock()
    return run


def say(listener: Listener) -> Callable[[str], None]:
    return lambda line: listener({"kind": "say", "line": line})


def _train(experiment: Experiment, prepared: Prepared, run: Run, listener: Listener, settled: bool) -> loop.Parts:
    if experiment.train.workers:
        return _on_ray(experiment, prepared, run, listener)
    device = experiment.train.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("train.device is cuda, but torch finds no GPU here. Leave it at auto, or say cpu")
    worker = Worker(device=device, threads=experiment.train.threads_of(os.cpu_count() or 1))
    return (yield from loop.in_parts(experiment, prepared.path, run.path, worker, listener, settled))


def _finish(experiment: Experiment, prepared: Prepared, run: Run, progress: dict[str, Any]) -> None:
    """The best weights as a model directory, with some validation rows and their answers."""
    best = Checkpoints(str(run.checkpoints)).load(f"{BEST}{progress['best_step']:08d}")
    if best is None:
        raise CheckpointError(f"{run.checkpoints}: the best weights, of step {progress['best_step']}, are damaged")
    trainer = Trainer(experiment, prepared, Worker())
    trainer.load_weights(best.tensors["model"])
    trainer.model.eval()
    _decode_as_asked(trainer.model, experiment)
    precision = progress["precision"]
    info = {
        "experiment": experiment.model_dump(mode="json"),
        "metrics": best.state["metrics"],
        "fingerprint": prepared.fingerprint,
        "precision": precision,
        "versions": run.info["versions"],
    }
    split = "valid" if prepared.size("valid") else "train"
    golden = [as_judged(trainer.task, row) for row in prepared.rows(split)[:GOLDEN]]
    Predictor(experiment.task, trainer.model, trainer.processor, info, precision=precision).save(run.model, golden)
    run.write(state="finished", progress=progress, metrics=best.state["metrics"])


def _decode_as_asked(model: Any, experiment: Experiment) -> None:
    """What generation_config.json says to whoever opens the model directory."""
    if model.config.is_encoder_decoder:
        model.generation_config.update(
            num_beams=experiment.decode.beams,
            length_penalty=experiment.decode.length_penalty,
            early_stopping=experiment.decode.beams > 1,
            max_length=experiment.data.max_length + 1,  # with the token that begins
        )


def versions() -> dict[str, str]:
    """Of everything that could explain another result."""
    names = ("bigmodel", "torch", "transformers", "tokenizers", "ray", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


# ---- Ray Train


def _on_ray(experiment: Experiment, prepared: Prepared, run: Run, listener: Listener) -> dict[str, Any]:
    """N workers of Ray Train, on a Ray of our own or the one RAY_ADDRESS names; started anew from the last checkpoint
    when one is lost, `train.retries` times."""
    listener({"kind": "say", "line": "starting Ray"})
    ours = cluster.connect()
    import ray

    try:
        scaling = _scaling(experiment, ray.cluster_resources())
        with Tail(run.events, listener):
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


def _through_losses(experiment: Experiment, prepared: Prepared, run: Run, scaling: dict[str, Any]) -> dict[str, Any]:
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
            setback.note(run.path, "Ray Train's controller died")
            continue
        if "preempted" not in result:
            return result


def _trainer_result(experiment: Experiment, prepared: Prepared, run: Run, scaling: dict[str, Any]) -> dict[str, Any]:
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    train, least, most = experiment.train, experiment.train.least_workers, experiment.train.most_workers
    config = {
        "experiment": experiment.model_dump(mode="json"),
        "prepared": str(prepared.path),
        "run": str(run.path),
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
            name=f"{run.path.name}-{time.time_ns()}",  # ours are the checkpoints: Ray has nothing to resume
            storage_path=str(run.path / "ray"),
            failure_config=FailureConfig(
                max_failures=train.retries,
                controller_failure_limit=int(WAIT_S / float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])),
            ),
            callbacks=[_notes(run.path)],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result: dict[str, Any] = vars(trainer.fit())["return_value"]
    except ControllerError as e:
        raise TrainingError(
            f"Ray Train could not start {train.workers} workers any more; the last checkpoint stays. {last_line(e)}"
        ) from e
    except TrainingFailedError as e:
        what = _befallen(getattr(e, "worker_failures", None) or {0: e})
        raise TrainingError(f"training failed {train.retries + 1} times; the last checkpoint stays: {what}") from e
    finally:
        shutil.rmtree(run.path / "ray", ignore_errors=True)
    if "error" in result:
        raise TrainingError(result["error"])
    if "interrupted" in result:
        raise Interrupted(result["interrupted"])
    return result


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in each worker. A loss that is not a number would be so again: it is an answer, not a failure, and so
    is a stop that was asked for."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    rank, world = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, world, device, config["threads"], ray=True, leaves=cluster.leaving)
    if blind := _without(Path(config["prepared"]), worker):
        return {"error": f"{config['prepared']} is not to be seen on {', '.join(blind)}: {SHARED}"}
    experiment = Experiment.model_validate(config["experiment"])
    try:
        return loop.train(experiment, Path(config["prepared"]), Path(config["run"]), worker, lambda event: None)
    except TrainingError as e:
        return {"error": str(e)}
    except Preempted as e:
        if rank == 0:
            setback.note(Path(config["run"]), str(e))
        return {"preempted": str(e)}
    except Interrupted as e:
        if not (Path(config["run"]) / STOP).exists():
            raise  # a signal to this worker alone
        return {"interrupted": str(e)}


def _without(path: Path, worker: Worker) -> list[str]:
    """The workers' machines that do not see a folder: all learn it, so that none waits for those."""
    seen: list[str | None] = [None if path.is_dir() else platform.node()] * worker.world
    if worker.world > 1:
        dist.all_gather_object(seen, seen[worker.rank])
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
    return f"worker {rank}: {last_line(error)}"


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
