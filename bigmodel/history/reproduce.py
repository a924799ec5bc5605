"""`bigmodel reproduce`: a finished run trained again from what it stored, and compared to the last bit.

The experiment is the stored one. What changes the last bits is as it was: the decisions that the run made, such as its
precision, and what it took from its machine, which is now asked for.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import yaml

from bigmodel import pipeline
from bigmodel.data.files import is_remote, local, resolve, stored
from bigmodel.data.prepare import prepare
from bigmodel.errors import ConfigError, DataError, ResourceError
from bigmodel.experiment import Experiment, change
from bigmodel.history.difference import SHOWN, losses, machine, sections
from bigmodel.history.record import RunRecord, open_run
from bigmodel.training.display import Display
from bigmodel.training.fit import fit_in_parts, say
from bigmodel.training.loop import finish
from bigmodel.training.run import Run

EXPLAIN = ("versions", "decisions", "machine")  # what can explain another result; the experiment is the same
HERE = "Relative paths start where the command runs: run it where the run was trained"


def reproduce(path: Path, output: Path | None = None, fresh: bool = False) -> int:
    """Train the run of a folder again, into `output` or RUN-again, and print whether the result is the same.

    -> exit code: 0 if weights and losses are equal, else 1. A reproduction that was interrupted goes on. ConfigError
    if the run is not finished or its data is not what it was; and whatever training raises.
    """
    pipeline.quiet()
    record = open_run(path)
    experiment = again(record, output or record.path.with_name(f"{record.path.name}-again"))
    run = Run(experiment.output_path)
    if run.path.resolve().is_relative_to(record.path.resolve()):
        raise ConfigError(f"--output {output} lies in the run that is reproduced. Name another folder")
    run.refuse_strangers()
    if not fresh:
        run.refuse_another(experiment)
    refuse_without_gpu(record, experiment)
    print(f"{record.name} again, in {RunRecord(run.path).name}", flush=True)
    with Display() as display:
        refuse = partial(refuse_other_data, record, experiment)
        try:
            prepared = prepare(experiment, say(display), refuse)
        except DataError as e:
            raise DataError(f"{e}\n{record.name} cannot be reproduced without its data. {HERE}") from None
        parts = fit_in_parts(experiment, fresh, display, prepared.path, settled=False, decisions=record.decisions)
        run = finish(parts)
    return tell(record, RunRecord(run.path))


def refuse_without_gpu(record: RunRecord, experiment: Experiment) -> None:
    import torch

    if experiment.train.device == "cuda" and not experiment.train.workers and not torch.cuda.is_available():
        card = record.start.get("gpu") or "a GPU"
        raise ResourceError(f"{record.name} was trained on {card}; there is none here. Reproduce it where there is one")


def again(record: RunRecord, output: Path) -> Experiment:
    """The stored experiment, on as many workers and threads, and the device, that the run had."""
    if record.state != "finished":
        raise ConfigError(
            f"{record.name}: {record.state}: there is no result to reproduce. Finish it first with bigmodel train"
        )
    if other := record.info.get("taken_over"):
        raise ConfigError(
            f"{record.name}: it went on from weights of trial {other} (tune.scheduler: pbt), with other values than "
            "before: no experiment gives it again"
        )
    file = record.path / "experiment.yaml"
    try:
        stored = Experiment.stored(file)
    except (OSError, ValueError, yaml.YAMLError) as e:
        reason = " ".join(str(e).split())
        raise ConfigError(f"{file}: cannot be read, or is of another version of bigmodel: {reason:.300}") from None
    taken = {
        "train.workers": record.start.get("workers"),
        "train.threads": record.start.get("threads"),
        "train.device": str(record.start["device"]).partition(":")[0] if "device" in record.start else None,
    }
    changes = [f"{key}={value}" for key, value in taken.items() if value is not None]
    return change(stored.model_dump(mode="json") | {"output": str(output.absolute())}, changes)


def refuse_other_data(record: RunRecord, experiment: Experiment, fingerprint: str) -> None:
    """ConfigError, with what is known of the reason, if the data is not what the run was trained from."""
    stored = record.info.get("fingerprint")
    if fingerprint == stored:
        return
    then, now = record.versions.get("tokenizers"), metadata.version("tokenizers")
    reasons = [f"{file} was written after the run began" for file in changed_since(experiment, record.started)]
    if then and then != now:
        reasons.append(f"tokenizers was {then}, now it is {now}")
    raise ConfigError(
        f"{record.name}: the data is not what it was trained from: its fingerprint was {stored}, now it is "
        f"{fingerprint}. {'; '.join(reasons) or 'The files changed, or another version of bigmodel prepares them'}. "
        "Nothing was trained"
    )


def changed_since(experiment: Experiment, began: datetime | None) -> list[str]:
    """The local data files that were written since."""
    specs = [spec for spec in (experiment.data.train, experiment.data.valid, experiment.data.test) if spec is not None]
    files = [file for spec in specs for source in resolve(spec) for file in stored(source) if not is_remote(file)]
    return [file for file in files if began and Path(local(file)).stat().st_mtime > began.timestamp() + 1]


def tell(record: RunRecord, repeated: RunRecord) -> int:
    """Print the verdict. -> exit code."""
    found = sections(record, repeated)
    parted = losses(record, repeated)
    digests = ", ".join(str(digest)[:SHOWN] for digest in record.weights.values())
    if not found["weights"] and not parted:
        print(f"equal: the weights (SHA-256 {digests}) and the losses of all {len(record.steps):,} steps")
        return 0
    print("not equal")
    for line in [*(f"losses {line}" for line in parted), *found["weights"]]:
        print(f"  {line}")
    if not parted and record.weights == repeated.weights:
        return 1  # it is told: what was saved was equal
    reasons = [f"{title}: {line}" for title in EXPLAIN for line in found[title]]
    if len({tuple(machine(start).items()) for start in record.of_kind("start")}) > 1:
        reasons.append(f"machine: not one did all of {record.name}, or not with as many threads")
    print("what could explain it:" if reasons else "what could explain it: nothing that is known differs")
    for line in reasons:
        print(f"  {line}")
    return 1
