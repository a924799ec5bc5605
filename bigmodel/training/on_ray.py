"""Training on N workers of Ray Train. It places them, and starts them anew where a node or one of them is lost.

Each worker holds a server of processes (forkserver.py), and the process that it forks trains. Where one of those dies,
all begin anew from the last checkpoint at once, without Ray.

Only this file and ray_train.py import ray.train. Nothing goes through `ray.train.report`, which takes one report in two
seconds and keeps no metrics without a checkpoint. What is heavy, the processes that train import alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from bigmodel import cluster
from bigmodel.errors import Interrupted, ResourceError, TrainingError, last_line
from bigmodel.experiment import Experiment
from bigmodel.training import forkserver, nursery, ray_train, setback
from bigmodel.training.events import Listener, Tail
from bigmodel.training.run import STOP, Run
from bigmodel.training.stop import Stop

WAIT_S = 240  # for room for the workers, once it has been taken away
NOTICE_S = 20.0  # for a process to notice by itself that another one is lost, and to end what it is saving
PEER = ("by peer", "onnection closed", "likely closed", "Broken pipe")  # gloo's, NCCL's and the store's words
FOLLOWED = "lost the connection to another one, which died, or its node did"
REQUEST = "ray.request"  # in the run's folder: by what name room was asked for
GROW_S = 30.0  # between two looks whether there is room for more of them


def train(experiment: Experiment, prepared: Path, run: Path, listener: Listener) -> dict[str, Any]:
    """N workers of Ray Train, on a Ray of our own or the one RAY_ADDRESS names; started anew from the last checkpoint
    when one is lost, `train.retries` times in all. A signal asks them to save and end."""
    listener({"kind": "say", "line": "starting Ray"})
    name = secrets.token_hex(16)
    here = not os.environ.get("RAY_ADDRESS")  # while Ray starts, its workers' imports are done
    with nursery.kept(name, forkserver.__name__) if here else nullcontext():
        ours = cluster.connect()
        (run / setback.COUNT).unlink(missing_ok=True)
        import ray

        try:
            scaling = _scaling(experiment, cluster.nodes()) | {"nursery": name}
            with Tail(Run(run).events, listener), setback.Heard(run, listener), Stop(run / STOP):
                return _through_losses(experiment, prepared, run, scaling)
        finally:
            for left in (setback.COUNT, REQUEST):
                (run / left).unlink(missing_ok=True)
            if ours:
                ray.shutdown()


def _scaling(experiment: Experiment, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What each worker gets, all of it on one node; ResourceError if the cluster has not so much, before anything waits
    for it."""
    train, least = experiment.train, experiment.train.least_workers
    cpus, gpus = cluster.total(nodes, "CPU"), cluster.total(nodes, "GPU")
    use_gpu = train.device == "cuda" or (train.device == "auto" and gpus >= least)
    if use_gpu and gpus < least:
        raise ResourceError(f"train.workers is {train.workers} with a GPU each; the cluster has {gpus:g} GPUs")

    def wanted(threads: int) -> Mapping[str, float]:
        return {"CPU": threads} | ({"GPU": 1} if use_gpu else {})

    most = int(cpus // train.most_workers)
    fitting = (count for count in range(most, 1, -1) if cluster.places(nodes, wanted(count)) >= train.most_workers)
    threads = train.threads_of(next(fitting, 1))
    room = cluster.places(nodes, wanted(threads))
    if room < least:
        each = f", of {threads} threads each" if threads > 1 else ""
        where = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
        fewer = range(min(threads - 1, int(cpus)), 0, -1)
        lower = next((count for count in fewer if cluster.places(nodes, wanted(count)) >= least), 0)
        ways = [f"ask for at most {room} workers"] if room else []
        ways += [f"lower train.threads to at most {lower}"] if lower else []
        advice = ", ".join([*ways, "or add nodes" if ways else "add nodes"])
        raise ResourceError(
            f"train.workers is {train.workers}{each}; the cluster has {cpus:g} CPUs{where}. "
            f"{advice[0].upper()}{advice[1:]}"
        )
    return {"threads": threads, "use_gpu": use_gpu, "resources_per_worker": wanted(threads)}


def _through_losses(experiment: Experiment, prepared: Path, run: Path, scaling: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train does not do by itself: begin anew where its controller has died, or a node had to be left."""
    from ray.exceptions import RayActorError

    failures = 0
    while True:
        try:
            result = _trainer_result(experiment, prepared, run, scaling)
        except RayActorError as e:
            failures = setback.count(run, failures + 1)
            if failures > experiment.train.retries:
                what = "Ray Train's controller died"
                raise TrainingError(f"training failed {failures} times; the last checkpoint stays: {what}") from e
            ray_train.release_orphans()
            setback.note(run, "Ray Train's controller died")
            continue
        if "preempted" not in result:
            return result


def _trainer_result(experiment: Experiment, prepared: Path, run: Path, scaling: dict[str, Any]) -> dict[str, Any]:
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

    train, least, most = experiment.train, experiment.train.least_workers, experiment.train.most_workers
    config = {
        "experiment": experiment.model_dump(mode="json"),
        "prepared": str(prepared),
        "run": str(run),
        "threads": scaling["threads"],
        "device": "cuda" if scaling["use_gpu"] else "cpu",
        "nursery": scaling["nursery"],
    }
    run_config: Any = RunConfig(
        name=f"{run.name}-{time.time_ns()}",  # ours are the checkpoints: Ray has nothing to resume
        storage_path=str(run / "ray"),
        failure_config=FailureConfig(max_failures=train.retries, controller_failure_limit=-1),
        callbacks=[_notes(run), ray_train.patience(WAIT_S), ray_train.at_once()],
        logging_config=LoggingConfig(log_level="WARNING"),
    )
    trainer = DataParallelTrainer(
        _work,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            use_gpu=scaling["use_gpu"],
            resources_per_worker=scaling["resources_per_worker"],
            elastic_resize_monitor_interval_s=GROW_S,
        ),
        run_config=run_config,
    )
    try:
        ray_train.request(trainer, run / REQUEST)
        result: dict[str, Any] = vars(ray_train.lighter(trainer).fit())["return_value"]
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
    """What runs in each worker: it has a process train, and another one where that is lost, until all are at their end
    or `train.retries` are used up. -> what the process found, or `error`, `interrupted`, `preempted` with what is said
    about it."""
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero

    context = train.get_context()
    rank, world, run = context.get_world_rank(), context.get_world_size(), Path(config["run"])
    request = config | {"rank": rank, "world": world, "device": _device(config["device"])}
    timeout = config["experiment"]["train"]["timeout"]
    failures, why = setback.counted(run), ""
    with forkserver.ForkServer(request.pop("nursery")) as server:
        while True:
            with _place() as place:
                plan = broadcast_from_rank_zero(_plan(config, failures, why, place) if rank == 0 else None)
                if "error" in plan:
                    server.end()
                    return dict(plan)
                cut, others = _cut(run), Others(run, plan["port"])
                found = server.run(request | plan, ray_train.leaving, others.are_lost, timeout)
            if found is not None and "lost" not in found:
                if "preempted" not in found:
                    server.end()
                elif rank == 0:
                    setback.note(run, found["preempted"])
                return found
            why = _in_plain_words(rank, found["lost"]) if found else f"worker {rank} died"
            if others.known:
                why = "another worker was lost"
            elif not others.told() and not why.endswith(FOLLOWED):
                setback.note(run, why)
            others.tell()
            _meet()
            if rank == 0 and not setback.noted(run):
                setback.note(run, why)
            if rank == 0 and _cut(run) == cut:  # to begin anew with smaller micro-batches is no failure
                failures = setback.count(run, failures + 1)


class Others:
    """Of one meeting of the workers: whether one of them has lost its process. A file says so, in the folder that all
    see; those that wait for that one, in a sum of gradients or anywhere else, need not notice by themselves."""

    def __init__(self, run: Path, port: int) -> None:
        self._file = run / "ray" / f"lost-{port}"
        self._since = 0.0
        self.known = False
        """For so long that a process that still goes on is ended."""

    def tell(self) -> None:
        with suppress(OSError):  # a full disk: they have to notice by themselves
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()

    def told(self) -> bool:
        return self._file.exists()

    def are_lost(self) -> bool:
        if self.told():
            self._since = self._since or time.monotonic()
            self.known = time.monotonic() - self._since > NOTICE_S
        return self.known


def _meet() -> None:
    from ray.train.collective import barrier

    try:
        barrier()
    except Exception as e:
        raise RuntimeError("another worker did not come back") from e


def _device(kind: str) -> str:
    """The GPU that Ray has given to this worker, by its number among those that it sees."""
    if kind == "cpu":
        return kind
    import ray

    own = str(ray.get_gpu_ids()[0])
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return f"cuda:{seen.index(own) if own in seen else own}"


def _place() -> socket.socket:
    """Where the others find this worker: a free port, which nobody else gets as long as this is open. The process that
    trains listens there (member.py)."""
    import ray

    host = ray.util.get_node_ip_address()
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    place.bind((host, 0))
    return place


def _plan(config: dict[str, Any], failures: int, why: str, place: socket.socket) -> dict[str, Any]:
    """Where the workers meet next, or why they do not."""
    if failures > config["experiment"]["train"]["retries"]:
        what = setback.taken(Path(config["run"])) or why
        return {"error": f"training failed {failures} times; the last checkpoint stays: {what}"}
    host, port, *_ = place.getsockname()
    return {"host": host, "port": port}


def _cut(run: Path) -> list[Any]:
    """The decisions that a process leaves behind which ended to have all begin anew with them."""
    made = Run(run).info.get("decisions", {})
    return [made.get("nondeterministic"), *(each for each in made.get("healing", []) if each["what"] == "accumulate")]


def _notes(run: Path) -> Any:
    """Called by Ray Train's controller when workers fail."""
    from ray.train import UserCallback

    class Notes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if not any(getattr(_cause(e), "preempted", False) for e in worker_exceptions.values()):
                setback.count(run)
            why = _befallen(worker_exceptions)
            if not ("did not come back" in why and setback.noted(run)):
                setback.note(run, why)

    return Notes()


def _befallen(failures: dict[int, Exception]) -> str:
    """Who died; else what the first one says, whom the others may have followed."""
    from ray.exceptions import RayActorError

    died = [rank for rank, e in failures.items() if isinstance(_cause(e), RayActorError)]
    if died:
        return " and ".join(f"worker {rank}" for rank in sorted(died)) + " died, or the node did"
    rank, error = min(failures.items())
    return _in_plain_words(rank, last_line(error))


def _cause(error: Exception) -> Exception:
    """Of a worker that Ray Train found dead: why."""
    cause: Exception = getattr(error, "health_check_failure", error)
    return cause


def _in_plain_words(rank: int, what: str) -> str:
    if any(each in what for each in PEER):
        return f"worker {rank} {FOLLOWED}"
    return f"worker {rank}: {what}"
