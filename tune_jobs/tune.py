"""tune(experiment file): search, judge, keep the winner, test it once, report. What `bigmodel tune` does.

Ray takes seconds to start, and so do the imports: they go side by side, so what is heavy is imported inside functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel import cluster

if TYPE_CHECKING:
    from bigmodel.experiment import Check, Experiment


def tune(path: Path, overrides: Sequence[str] = (), fresh: bool = False) -> dict[str, Any]:
    """Search what the experiment of a file says, or go on where it was. -> tune_report.json"""
    with cluster.Ahead() as ray:
        refuse_at_once(path, overrides, fresh)
        ray.start()
        from bigmodel import mup, pipeline, tasks
        from bigmodel.errors import ConfigError
        from bigmodel.pipeline import relative, say, write_json
        from tune_jobs.report import report, show
        from tune_jobs.search import search
        from tune_jobs.space import and_ranges
        from tune_jobs.winner import chosen, judged, kept, widened

        experiment = read(path, overrides, pipeline.check)
        pipeline.quiet()
        narrow = mup.proxy(experiment, experiment.tune.proxy) if experiment.tune.proxy else experiment
        try:
            found = search(narrow, pipeline.check, fresh, say)
        except ConfigError:
            read(path, overrides, and_ranges(pipeline.check))  # says it with its line, if it is of a range
            raise
        ray.stop()

        verdict = judged(found)
        winner = chosen(found, verdict)
        best, test, model = widened(found, winner, experiment) if experiment.tune.proxy else kept(found, winner)
        goal = tasks.get(experiment.task).goal
        files = str(relative(best)), str(relative(model))
        told = report(path.stem, found.trials, goal, found.space, verdict, test, found.seconds, *files)
        write_json(found.folder / "tune_report.json", told)
        from tune_jobs.page import page

        (found.folder / "tune_report.html").write_text(page(told), "utf-8")
        show(told)
        say(f"page    {relative(found.folder / 'tune_report.html')}")
    return told


def refuse_at_once(path: Path, overrides: Sequence[str], fresh: bool) -> None:
    """What can be checked in an instant: nobody waits for a Ray to learn that an experiment, a range or the name of a
    file is wrong, or that its folder holds another search. ConfigError, with what is wrong of the model too,
    CheckpointError, DataError."""
    from bigmodel.data.files import is_remote, resolve
    from bigmodel.errors import ConfigError
    from bigmodel.pipeline import check, check_data
    from tune_jobs.search import folder_of, goes_on, refuse
    from tune_jobs.space import and_ranges, space

    try:
        experiment = read(path, overrides, and_ranges(check_data))
    except ConfigError:
        read(path, overrides, and_ranges(check))
        raise
    refuse(experiment, space(experiment))
    if not fresh and not experiment.tune.proxy:  # to make a model narrow takes torch: of a proxy, search says it
        goes_on(folder_of(experiment), experiment)
    data = experiment.data
    named = [[spec] if isinstance(spec, str) else spec or [] for spec in (data.train, data.valid, data.test)]
    if here := [source for source in chain(*named) if not is_remote(source)]:
        resolve(here)


def read(path: Path, overrides: Sequence[str], check: Check) -> Experiment:
    """The experiment, with those of the changes that are ranges put into its space."""
    from bigmodel import experiment as experiments
    from tune_jobs.space import is_range

    overrides = [change.removeprefix("tune.space.") for change in overrides]
    ranges = [change.partition("=") for change in overrides if is_range(change)]
    changes = [change for change in overrides if not is_range(change)]
    changes += [f"tune.space.{name}={json.dumps(text, ensure_ascii=False)}" for name, _, text in ranges]
    return experiments.load(path, changes, check)
