"""evaluate(predictor, rows) -> report: how good the answers are, beside what, where they fail, and how fast they come.

What every task has stands here: its own score, truncated inputs, speed. The rest is the analysis of its kind, a module
beside this one that is named by the last word of the task: text-classification -> classification.py. Such a module has

    analyse(evidence) -> dict     further keys of the report, JSON-able
    render(report) -> Iterator  what a person reads of them, for rich
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bigmodel.data.answers import Answers
from bigmodel.errors import DataError
from bigmodel.evaluation.evidence import Evidence, Place, Say, Training
from bigmodel.tasks.base import Answer, Row, Task, as_judged

if TYPE_CHECKING:
    from bigmodel.predictor import Predictor

AT_ONCE = 65_536  # rows that are read, encoded and answered together, fewer of files
WARM_UP = 8  # rows answered once before the clock runs: first calls load and tune kernels


def evaluate(
    predictor: Predictor,
    rows: Sequence[Row],
    place: Place,
    training: Training | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Answer the rows and judge the answers. -> the report, JSON-able.

    rows      cleaned, with their targets; gone through several times, and not held
    place     number of a row -> its file and line
    training  makes an iterable of the rows the model learnt from: baselines are fitted on them
    say       told what takes its time

    DataError where there is nothing to judge, or a row has no target.
    """
    _check(predictor.task, rows, place)
    answers, speed = _answer(predictor, rows)
    report = {
        "task": predictor.name,
        "rows": len(rows),
        "metrics": predictor.task.score(answers, rows),
        **analysis(predictor.name).analyse(Evidence(predictor.task, rows, place, answers, training, say, predictor)),
        "truncated": _truncated(answers),
        "speed": speed,
    }
    return report


def analysis(task: str) -> Any:
    """The module that reads the answers of this kind of task."""
    return importlib.import_module(f"bigmodel.evaluation.{task.rpartition('-')[2]}")


def _check(task: Task, rows: Sequence[Row], place: Place) -> None:
    if not rows:
        raise DataError(
            "there are no rows to test on: the files hold none that can be used, or data.split.test is 0. "
            "Name files of labelled rows, or leave a part of the rows for the test with data.split.test"
        )
    for i, row in enumerate(rows):
        if missing := [role for role in task.targets if row.get(role) is None]:
            file, line = place(i)
            raise DataError(
                f"{file}:{line}: the row has no {missing[0]}. A test needs one in every row; "
                "rows without are answered by `bigmodel predict`"
            )


def _answer(predictor: Predictor, rows: Sequence[Row]) -> tuple[Answers, dict[str, Any]]:
    """Answers in the order of the rows, and how fast they came, encoding included."""
    import torch

    def questions(start: int, end: int) -> list[Row]:
        return [as_judged(predictor.task, row) for row in rows[start:end]]

    predictor.judge_samples(predictor.encode(questions(0, WARM_UP)))
    answers = Answers()
    seconds, num_tokens = 1e-9, 0
    at_once = predictor.at_once(rows[0], AT_ONCE)
    begins = range(0, len(rows), AT_ONCE)
    cuts = [at for begin in begins for at in range(begin, min(begin + AT_ONCE, len(rows)), at_once)]
    for start, end in pairwise([*cuts, len(rows)]):
        asked = questions(start, end)
        began = time.perf_counter()
        samples = predictor.encode(asked)
        answers.extend(predictor.judge_samples(samples))
        seconds += time.perf_counter() - began
        num_tokens += sum(predictor.task.length(sample) for sample in samples)
    return answers, {
        "seconds": round(seconds, 4),
        "rows_per_s": round(len(answers) / seconds, 1),
        "tokens_per_s": round(num_tokens / seconds, 1),
        "unit": predictor.task.unit,
        "device": predictor.device,
        "precision": predictor.precision,
        "threads": torch.get_num_threads(),
    }


def _truncated(answers: Sequence[Answer]) -> dict[str, int]:
    """How many rows the model read in part, and the longest of them in tokens."""
    cut = [answer for answer in answers if answer.get("truncated")]
    return {
        "rows": len(cut),
        "longest": max((answer["tokens"] for answer in cut), default=0),
        "read": max((answer["tokens_read"] for answer in cut), default=0),
    }
