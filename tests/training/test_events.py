"""events.jsonl: what a power cut leaves of it, and when it is on the disk."""

import os
from pathlib import Path
from typing import Any

import pytest
from training.test_interruption import sha256

from bigmodel.history.record import RunRecord
from bigmodel.training.events import Events, Tail, read
from bigmodel.training.fit import fit
from bigmodel.training.run import Run
from bigmodel.training.saver import STEP

STUMP = b'{"kind": "step", "lo{"kind": "start", "step": 5}\n'
"""What a start after a power cut left before lines were cut off whole."""


def steps_of(file: Path) -> list[int]:
    return [event["step"] for event in read(file)]


@pytest.mark.parametrize("cut", [0, 1, 40, 59, 60, 61, 100])
def test_a_file_cut_off_before_the_position_goes_on_after_its_last_whole_line(tmp_path, cut):
    file = tmp_path / "events.jsonl"
    with Events(file, lambda event: None) as events:
        for step in range(1, 5):
            events.write("step", step=step)
        position = events.position
    line = position // 4
    file.write_bytes(file.read_bytes()[:cut])
    with Events(file, lambda event: None) as events:
        assert events.start(position) == []
        events.write("start", step=4)
        events.begun()
    assert steps_of(file) == [*range(1, cut // line + 1), 4]
    assert file.read_bytes().count(b"\n") == cut // line + 1


def test_a_position_within_a_line_has_the_line_done_again(tmp_path):
    file = tmp_path / "events.jsonl"
    with Events(file, lambda event: None) as events:
        events.write("step", step=1)
        position = events.position + 7
        events.write("step", step=2)
    with Events(file, lambda event: None) as events:
        assert events.start(position) == [{"kind": "step", "step": 2}]


def test_a_damaged_line_is_passed_over_by_all_who_read(tmp_path):
    file, told = tmp_path / "events.jsonl", list[dict[str, Any]]()
    file.touch()
    tail = Tail(file, told.append)
    file.write_bytes(b'{"kind": "step", "step": 4}\n' + STUMP + b'[1]\n{"kind": "step", "step": 6}\n')
    tail.read()
    assert read(file) == told and steps_of(file) == [4, 6]


def test_the_seconds_of_a_run_leave_out_a_step_whose_rate_is_rounded_to_nothing(tmp_path):
    run = Run(tmp_path)
    with Events(run.events, lambda event: None) as events:
        for rate in (0.0, 8.0, 4.0):
            events.write("step", step=1, samples=16, samples_per_s=rate)
    assert run.seconds() == RunRecord(tmp_path).seconds == 2 + 4


def test_a_run_whose_events_a_power_cut_tore_goes_on_to_the_same_bits(experiment, tmp_path):
    changes = ("train.epochs=2", "train.checkpoint_every=5")
    unbroken = fit(experiment(*changes, f"output={tmp_path / 'unbroken'}"))

    class Cut(Exception):
        pass

    def cut(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] >= 16:
            raise Cut

    with pytest.raises(Cut):
        fit(experiment(*changes), listener=cut)
    file = tmp_path / "run" / "events.jsonl"
    file.write_bytes(file.read_bytes()[:1200])
    run = fit(experiment(*changes))
    assert sha256(run.path) == sha256(unbroken.path)
    told = [event["step"] for event in read(run.events) if event["kind"] == "step"]
    assert told[-1] == 22 and told == sorted(set(told)) and len(told) < 22


def test_events_are_on_the_disk_before_a_checkpoint_tells_how_far_they_go(experiment, monkeypatch):
    synced, fsync = list[Path](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    fit(experiment("train.checkpoint_every=5"))
    names = [path.parent.name if path.name == "manifest.json.part" else path.name for path in synced if path.suffix]
    assert "events.jsonl.part" in names, "before it takes the place of what was there"
    in_order = [name for name in names if name == "events.jsonl" or name.startswith(STEP)]
    assert in_order == [name for step in (5, 10, 11, 15, 20, 22) for name in ("events.jsonl", f"{STEP}{step:08d}")]
