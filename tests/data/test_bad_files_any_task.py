"""Every file that breaks readers, met by every task: its rows are written, refused with a reason, or one message says
why none can be read."""

import json
import time
from pathlib import Path

import pytest
from pyarrow import ipc

from bigmodel import tasks
from bigmodel.data.prepare import Piece, _clean_piece
from bigmodel.data.record import ReadOptions
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError
from bigmodel.experiment import Experiment

COLUMNS = {  # task -> role in the experiment's data section: which of the file's columns it is
    "text-classification": {"text": 0, "label": -1},
    "image-classification": {"image": 0, "label": -1},
    "translation": {"source": 0, "target": -1},
    "text-generation": {"text": 0},
    "tabular-classification": {"label": -1},
    "tabular-regression": {"label": -1},
}


def names(file: Path) -> list[str]:
    """The columns of a file, if it opens; a task that reads other things than rows does without."""
    try:
        return open_rows(str(file), ReadOptions())[0] or ["text"]
    except DataError:
        return ["text"]


@pytest.mark.parametrize("task", COLUMNS)
def test_every_bad_file_is_read_refused_or_said(task: str, data_folder: Path, tmp_path: Path) -> None:
    files = [file for file in sorted((data_folder / "bad_inputs").rglob("*")) if file.is_file()]
    assert len(files) > 500
    files.append(data_folder / "bad_inputs" / "Pillow" / "Tests")  # images, in a class folder
    written = refused = said = 0
    for number, file in enumerate([files[0], *files]):  # the first to import what the task wants
        began, there, out = time.monotonic(), names(file), tmp_path / f"{number}.arrow"
        columns = {role: there[at] for role, at in COLUMNS[task].items()}
        experiment = Experiment.model_validate({"task": task, "data": {"train": str(file), **columns}})
        try:
            counts = _clean_piece(Piece(experiment, str(file), None, str(out)))
        except DataError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error), error
            said += 1
        else:
            rows = ipc.open_stream(out).read_all().to_pylist() if out.exists() else []
            bad = [json.loads(line) for line in out.with_suffix(".bad").read_text("utf-8").split("\n")[:-1]]
            assert (len(rows), len(bad)) == (counts["rows"], counts["refused"]) != (0, 0)
            assert all(row["reason"] and "\n" not in row["reason"] for row in bad), file
            assert all(tasks.get(task).columns(experiment.data).keys() <= row.keys() for row in rows)
            written, refused = written + len(rows), refused + len(bad)
        assert not number or time.monotonic() - began < 10, f"{file} takes too long"
    assert said and refused and (written or task == "tabular-regression"), (written, refused, said)
