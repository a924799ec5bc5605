"""fit(experiment) -> Run: prepare, train in this process or on N workers of Ray Train, leave the best model behind.

What workers do, what they save and what they report is the loop's, the same with and without Ray.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from bigmodel.cores import available_cores
from bigmodel.data.prepare import Prepared, open_prepared, prepare
from bigmodel.errors import CheckpointError, Interrupted, ResourceError, first_line
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor
from bigmodel.tasks.base import as_judged
from bigmodel.training import healing, loop, on_ray
from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.events import Event, Listener
from bigmodel.training.run import STOP, Run
from bigmodel.training.saver import BEST
from bigmodel.training.trainer import Trainer, Worker

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
    cores: int | None = None,
) -> Generator[Event, None, Run]:
    """`fit` that hands over each validation but the last, to a caller that may leave it there and come back later.

    On workers of Ray Train it goes through in one part. `prepared` is the folder of data prepared before. A caller that
    does not look into the run's folder meanwhile need not wait for each checkpoint: `settled` false. `decisions`, as in
    run.json, are those that a new run need not make itself. `cores` may be used, not all that this process could.
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
            progress = yield from _train(experiment, data, run, listener, settled, cores)
            with healing.held():
                _finish(experiment, data, run, progress)
    except BaseException as e:
        if begun:
            left = isinstance(e, (Interrupted, KeyboardInterrupt, GeneratorExit))
            with suppress(ResourceError):  # on a full disk; `e` is what to say
                run.write(state="interrupted" if left else "failed")
        raise
    finally:
        run.unlock()
    return run


def say(listener: Listener) -> Callable[[str], None]:
    return lambda line: listener({"kind": "say", "line": line})


def _train(
    experiment: Experiment, prepared: Prepared, run: Run, listener: Listener, settled: bool, cores: int | None
) -> loop.Parts:
    if experiment.train.workers:
        return on_ray.train(experiment, prepared.path, run.path, listener)
    device = experiment.train.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("train.device is cuda, but torch finds no GPU here. Leave it at auto, or say cpu")
    cores = available_cores() if cores is None else cores
    worker = Worker(device=device, threads=experiment.train.threads_of(cores), cores=cores)
    return (yield from loop.in_parts(experiment, prepared.path, run.path, worker, listener, settled))


def _finish(experiment: Experiment, prepared: Prepared, run: Run, progress: dict[str, Any]) -> None:
    """The best weights as a model directory, with some validation rows and their answers."""
    best = Checkpoints(str(run.checkpoints)).load(f"{BEST}{progress['best_step']:08d}")
    if best is None:
        raise CheckpointError(
            f"{run.checkpoints}: the best weights, of step {progress['best_step']}, are damaged. The same command goes "
            "on from a checkpoint before them"
        )
    trainer = Trainer(experiment, prepared, Worker())
    trainer.load_weights(best.tensors["model"])
    trainer.model.eval()
    _decode_as_asked(trainer.model, experiment)
    info = {
        "experiment": experiment.model_dump(mode="json"),
        "metrics": best.state["metrics"],
        "fingerprint": prepared.fingerprint,
        "versions": run.info["versions"],
    }
    try:
        _leave(trainer, run.model, info, progress["precision"])
    except Exception as e:
        if not isinstance(e, OSError) and "(os error " not in str(e):  # as safetensors and tokenizers say it
            raise
        why = f"the model cannot be written: {first_line(e)}. The last checkpoint stays"
        raise ResourceError(f"{run.model}: {why}") from e
    run.write(state="finished", progress=progress, metrics=best.state["metrics"])


def _leave(trainer: Trainer, model: Path, info: dict[str, Any], trained_in: str) -> None:
    """The model directory, with some rows and their answers."""
    prepared = trainer.prepared
    rows = prepared.rows("valid" if prepared.size("valid") else "train")[:GOLDEN]
    golden = [as_judged(trainer.task, row) for row in rows]
    for precision in (trained_in, "fp32"):
        info["precision"] = precision
        try:
            name = trainer.experiment.task
            Predictor(name, trainer.model, trainer.processor, info, precision=precision).save(model, golden)
            break
        except ResourceError:  # a GPU trained it in bf16, which this processor cannot compute
            if precision == "fp32":
                raise


def _decode_as_asked(model: Any, experiment: Experiment) -> None:
    """What generation_config.json says to whoever opens the model directory."""
    if model.config.is_encoder_decoder and model.can_generate():
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
