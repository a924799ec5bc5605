"""Prepared data: what it holds, when it is made anew, and what can go wrong meanwhile."""

import gzip
import json
import multiprocessing
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bigmodel.data import arrow
from bigmodel.data.prepare import Piece, _attempt, _clean_piece, prepare
from bigmodel.errors import ConfigError, DataError, ResourceError
from bigmodel.experiment import Experiment
from bigmodel.training.display import Display

ROWS = "".join(f"{'good' if i % 3 else 'bad'} film number {i} of many,{i % 3 and 1}\n" for i in range(200))


def experiment(
    folder: Path, train: Any = "train.csv", model: str = "lstm", output: str = "runs/a", **data: Any
) -> Experiment:
    named = {
        name: [str(folder / file) for file in files] if isinstance(files, list) else str(folder / files)
        for name, files in {"train": train, **{s: data.pop(s) for s in ("valid", "test") if s in data}}.items()
    }
    return Experiment.model_validate(
        {
            "task": "text-classification",
            "data": {"text": "text", "label": "label", **named, **data},
            "model": {"type": model},
            "output": str(folder / output),
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text("text,label\n" + ROWS)
    return tmp_path


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# ---- what it holds


def test_rows_samples_and_counts_belong_together(folder: Path) -> None:
    prepared = prepare(experiment(folder, split={"valid": 0.2, "test": 0.2}))
    assert prepared.fresh and prepared.counts["rows"] == 200
    assert sum(prepared.counts["splits"].values()) == 200
    lines = []
    processor = prepared.processor()
    for split in ("train", "valid", "test"):
        rows, samples = prepared.rows(split), prepared.samples(split)
        assert len(rows) == len(samples) == prepared.size(split) > 10
        for i, row in enumerate(rows):
            source, line = rows.place(i)
            assert source == str(folder / "train.csv")
            assert row["text"].split()[3] == str(line - 2)
            sample = samples[i]
            assert sample["labels"] == prepared.learnt["label2id"][row["label"]]
            assert processor.decode(sample["input_ids"]).split()[1] == "film"
            assert sample["num_tokens"] == len(sample["input_ids"]) == samples.lengths[i]
            lines.append(line)
    assert sorted(lines) == list(range(2, 202))


def test_what_is_learnt_comes_from_training_rows_alone(folder: Path) -> None:
    (folder / "test.csv").write_text("text,label\nzebra zebra zebra,1\n")
    prepared = prepare(experiment(folder, test="test.csv"))
    assert "zebra" not in prepared.processor().get_vocab()
    assert prepared.size("test") == 1


def test_duplicates_conflicts_and_rows_also_in_training_are_counted_and_stay_together(folder: Path) -> None:
    (folder / "train.csv").write_text(
        "text,label\n" + ROWS + "Same  text,1\nSame text ,1\nSame\ttext,0\ncafe\u0301,1\ncaf\u00e9,1\n"
    )
    (folder / "test.csv").write_text("text,label\nSame text,0\nnew text,1\nnew text,1\n")
    prepared = prepare(experiment(folder, test="test.csv", split={"valid": 0.5}))
    counts = {name: prepared.counts[name] for name in ("rows", "duplicates", "conflicting_labels", "also_in_training")}
    inside = {row["text"] for row in prepared.rows("train")}
    assert counts == {"rows": 208, "duplicates": 5, "conflicting_labels": 2, "also_in_training": "Same text" in inside}
    valid = {row["text"] for row in prepared.rows("valid")}
    assert not inside & valid


def test_every_format_and_many_files_give_the_same_samples(folder: Path) -> None:
    rows = [line.rsplit(",", 1) for line in ROWS.splitlines()]
    half = len(rows) // 2
    (folder / "parts").mkdir()
    (folder / "parts/a.tsv.gz").write_bytes(
        gzip.compress(("text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in rows[:half])).encode())
    )
    (folder / "parts/b.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": int(y)}) + "\n" for t, y in rows[half:])
    )
    parquet.write_table(
        pa.table({"label": [int(y) for _, y in rows], "text": pa.array([t for t, _ in rows], pa.large_string())}),
        folder / "all.parquet",
    )
    prepared = [prepare(experiment(folder, train=train)) for train in ("train.csv", "parts", "all.parquet")]
    assert len({p.fingerprint for p in prepared}) == 3
    for split in ("train", "valid", "test"):
        one, *others = [[s["input_ids"].tolist() for s in p.samples(split)] for p in prepared]
        assert all(other == one for other in others)


def test_more_rows_than_a_part_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "PART_ROWS", 64)
    (folder / "more.csv").write_text("text,label\n" + ROWS.replace("film", "book"))
    prepared = prepare(experiment(folder, train=["train.csv", "more.csv"], split={"valid": 0, "test": 0.1}))
    samples, rows = prepared.samples("train"), prepared.rows("train")
    assert len(list((prepared.path / "samples").glob("train-*.arrow"))) > 4
    assert len(samples) == len(rows) == len(list(samples)) == prepared.size("train")
    assert samples.lengths.tolist() == [len(samples[i]["input_ids"]) for i in range(len(samples))]
    for i in (0, 63, 64, 65, len(rows) - 1):
        assert prepared.processor().decode(samples[i]["input_ids"])[:4] == rows[i]["text"][:4]
    assert [row["text"] for row in rows[60:70]] == [rows[i]["text"] for i in range(60, 70)]
    assert {Path(rows.place(i)[0]).name for i in (0, len(rows) - 1)} == {"more.csv", "train.csv"}
    with pytest.raises(IndexError, match="was asked for"):
        samples[len(samples)]


@pytest.mark.parametrize("values", [[1, 0], [True, False], [1.0, 0.0]])
def test_labels_of_parquet_may_be_numbers(values: list[Any], folder: Path) -> None:
    texts = [f"text {i}" for i in range(40)]
    parquet.write_table(pa.table({"text": texts, "label": [values[i % 2] for i in range(40)]}), folder / "a.parquet")
    prepared = prepare(experiment(folder, train="a.parquet"))
    assert set(prepared.learnt["label2id"]) == ({"true", "false"} if values[0] is True else {"0", "1"})


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("values", [[1, 0], [True, False], [1.0, 0.0]])
def test_labels_are_relabelled_whether_they_are_words_numbers_or_truths(
    values: list[Any], name: str, folder: Path
) -> None:
    rows = [{"text": f"text {i}", "label": values[i % 2]} for i in range(40)]
    if name == "a.csv":
        words = [(row["text"], str(row["label"]).lower().removesuffix(".0")) for row in rows]
        (folder / name).write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in words))
    elif name == "a.jsonl":
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), folder / name)
    relabel = {"1": "pos", "true": "pos", "0": "neg", "false": "neg"}
    assert set(prepare(experiment(folder, train=name, relabel=relabel)).learnt["label2id"]) == {"pos", "neg"}


def test_labels_that_are_no_word_are_refused_also_where_labels_are_renamed(folder: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    rows += [{"text": f"wrong {i}", "label": label} for i, label in enumerate(([1], {"a": 1}, None))]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prepare(experiment(folder, train="a.jsonl", relabel={"0": "neg", "1": "pos"}, max_bad=0.1))
    refused = [json.loads(line) for line in (folder / "runs/a/quarantine.jsonl").read_text().splitlines()]
    assert [(row["line"], row["column"], row["reason"]) for row in refused] == [
        (41, "label", "a label is a word or a number, not list [1]"),
        (42, "label", "a label is a word or a number, not dict {'a': 1}"),
        (43, "label", "there is no label"),
    ]


# ---- when it is made anew


def test_a_second_call_prepares_nothing(folder: Path) -> None:
    first = prepare(experiment(folder))
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in first.path.rglob("*")}
    second = prepare(experiment(folder, output="runs/b"))
    assert (first.fresh, second.fresh) == (True, False)
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in second.path.rglob("*")} == before
    assert second.learnt == first.learnt and second.counts == first.counts


def changed(base: Experiment, **sections: Any) -> Experiment:
    tree = base.model_dump()
    for name, change in sections.items():
        tree[name] = {**tree[name], **change} if isinstance(change, dict) and name != "model" else change
    return Experiment.model_validate(tree)


SAME = {
    "learning rate": {"optim": {"lr": 0.5}},
    "workers, seed, batch": {"train": {"workers": 2, "seed": 9, "batch_size": 3}},
    "output": {"output": "elsewhere/a"},
    "max_bad": {"data": {"max_bad": 0.5}},
    "who prepares": {"data": {"distributed": "never"}},
    "augmentation": {"data": {"augment": {"swap": 0.1}}},
    "another model of ours": {"model": {"type": "gru", "hidden_size": 7}},
    "init": {"init": "normal"},
}
ANEW = {
    "split": {"data": {"split": {"valid": 0.2, "test": 0.1}}},
    "max_length": {"data": {"max_length": 17}},
    "tokenizer": {"data": {"tokenizer": {"type": "char"}}},
    "how files are read": {"data": {"encoding": "utf-8"}},
    "an encoder, whose texts are enclosed": {"model": {"type": "transformer"}},
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_shape_the_data_does_not_prepare_anew(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = changed(experiment(folder), data={"cache": str(folder / "cache")})
    monkeypatch.chdir(folder)
    assert prepare(base).fresh
    assert not prepare(changed(base, **SAME[name])).fresh


@pytest.mark.parametrize("name", ANEW)
def test_what_shapes_the_data_prepares_anew(name: str, folder: Path) -> None:
    base = experiment(folder)
    assert prepare(base).path != prepare(changed(base, **ANEW[name])).path


def test_changed_content_prepares_anew_and_the_same_content_again_does_not(folder: Path) -> None:
    first = prepare(experiment(folder))
    (folder / "train.csv").write_text("text,label\n" + ROWS.replace("many", "few"))
    assert prepare(experiment(folder)).path != first.path
    (folder / "train.csv").write_text("text,label\n" + ROWS)
    assert prepare(experiment(folder)).path == first.path


# ---- refused rows

RAGGED = "row has 1 field, header has 2"
SOME_BAD = "text,label\n" + ROWS + "only one field\n ,1\nfine text,\n"


def test_refused_rows_are_kept_with_file_line_column_and_reason(folder: Path) -> None:
    (folder / "train.csv").write_text(SOME_BAD)
    prepared = prepare(experiment(folder, max_bad=0.1))
    refused = [json.loads(line) for line in (folder / "runs/a/quarantine.jsonl").read_text().splitlines()]
    source = str(folder / "train.csv")
    assert refused == [
        {
            "file": source,
            "line": 202,
            "column": None,
            "reason": "row has 1 field, header has 2",
            "raw": "only one field",
        },
        {"file": source, "line": 203, "column": "text", "reason": "the text is empty", "raw": " "},
        {"file": source, "line": 204, "column": "label", "reason": "the label is empty", "raw": ""},
    ]
    assert (prepared.counts["refused"], prepared.counts["rows"]) == (3, 200)


def test_refused_rows_are_handed_over_also_by_what_is_found_and_max_bad_holds_there_too(folder: Path) -> None:
    (folder / "train.csv").write_text(SOME_BAD)
    first = prepare(experiment(folder, max_bad=0.1))
    second = prepare(experiment(folder, output="runs/b", max_bad=0.1))
    assert not second.fresh
    kept = (folder / "runs/b/quarantine.jsonl").read_bytes()
    assert kept == (first.path / "quarantine.jsonl").read_bytes() and kept.count(b"\n") == 3
    with pytest.raises(DataError, match="3 of 203 rows were refused"):
        prepare(experiment(folder, output="runs/c"))


def test_too_many_refused_rows_stop_the_run_with_the_first_ten(folder: Path) -> None:
    (folder / "train.csv").write_text("text,label\n" + ROWS + "broken\n" * 25)
    with pytest.raises(DataError) as stopped:
        prepare(experiment(folder))
    message = str(stopped.value)
    assert message.startswith("25 of 225 rows were refused; data.max_bad allows 1.00%:\n")
    assert [line for line in message.splitlines() if ": row has 1 field" in line] == [
        f"  {folder / 'train.csv'}:{line}: row has 1 field, header has 2" for line in range(202, 212)
    ]
    assert "... and 15 more" in message and str(folder / "runs/a/quarantine.jsonl") in message
    assert (folder / "runs/a/quarantine.jsonl").read_text().count("\n") == 25
    assert not list((folder / "runs/.prepared").glob("*/")), "nothing half made is left"


# ---- errors: situation, files, changes of the data section, words

HEAD = "text,label\n"
ERRORS: dict[str, tuple[dict[str, str | bytes], dict[str, Any], str]] = {
    "missing file": ({}, {"train": "trian.csv"}, "trian.csv: no such file. Did you mean {}/train.csv?"),
    "missing column": (
        {},
        {"label": "labell"},
        "train.csv: no column 'labell'. Did you mean 'label'? Columns: text, label. Name the one that holds the label "
        "with data.label=NAME",
    ),
    "missing column of one file": (
        {"b.csv": "text,stars\na,1\n"},
        {"train": ["train.csv", "b.csv"]},
        "b.csv: no column 'label'",
    ),
    "missing column of JSON": (
        {"a.jsonl": '{"txt": "a"}\n'},
        {"train": "a.jsonl"},
        "a.jsonl: no column 'text'. Did you mean 'txt'? Columns: txt.",
    ),
    "column twice": (
        {"a.csv": "text,label,label\na,1,2\n"},
        {"train": "a.csv"},
        "a.csv: 2 columns are called 'label'",
    ),
    "empty file": ({"a.csv": ""}, {"train": "a.csv"}, "a.csv: is empty"),
    "blank file": ({"a.csv": "\n\n"}, {"train": "a.csv"}, "a.csv: is empty"),
    "empty text file": (
        {"a.txt": ""},
        {"train": "a.txt", "columns": ["text", "label"], "delimiter": " "},
        "a.txt: is empty",
    ),
    "header alone": ({"a.csv": HEAD}, {"train": "a.csv"}, "a.csv: holds no row"),
    "header alone in validation": ({"a.csv": HEAD}, {"valid": "a.csv"}, "a.csv: holds no row"),
    "empty array": ({"a.json": "[]"}, {"train": "a.json"}, "a.json: no row has a name and a value"),
    "one class": (
        {"a.csv": HEAD + "a,1\nb,1\n"},
        {"train": "a.csv", "split": {"valid": 0, "test": 0}},
        "a.csv: column 'label': a classifier needs at least two labels, the training rows hold only '1'",
    ),
    "a label for each row": (
        {"a.csv": HEAD + "".join(f"a film,id-{i}\nthe book {i},id+{i}\n" for i in range(40))},
        {"train": "a.csv"},
        "training rows has a label of its own, such as 'id",
    ),
    "a vocabulary without room": (
        {"a.csv": HEAD + ROWS},
        {"train": "a.csv", "tokenizer": {"vocab_size": 5}},
        "data.tokenizer.vocab_size is 5, and 5 entries are special tokens: name more",
    ),
    "no row left": (
        {"a.csv": HEAD + "a,\nb,\n"},
        {"train": "a.csv", "max_bad": 1},
        "a.csv: no row is left to train on",
    ),
    "every row held out": (
        {"a.csv": HEAD + "row 0,0\n"},
        {"train": "a.csv"},
        "a.csv: no row is left to train on (held out: 1 for the test). Add rows, change data.split.test, or name files "
        "with data.test",
    ),
    "the other label held out": (
        {"a.csv": HEAD + "row 0,0\nrow 1,1\n"},
        {"train": "a.csv"},
        "at least two labels, the training rows hold only '1' (held out: 1 for the test). Add rows, change "
        "data.split.test, or name files with data.test",
    ),
    "rare label held out": (
        {"a.csv": HEAD + ROWS + "rare thing 20,rare\n"},
        {"train": "a.csv"},
        "a.csv:202: column 'label': label 'rare' does not occur in the training rows. Known: 0, 1. The row fell to "
        "those held out for the test: correct it, remove it, add more rows like it, hold out others with "
        "data.split.test, or name a file with data.test",
    ),
    "rare labels in validation": (
        {"a.csv": HEAD + ROWS + "".join(f"rare thing {i},rare{i}\n" for i in (3, 0, 1, 2))},
        {"train": "a.csv", "split": {"test": 0, "valid": 0.25}},
        "or name a file with data.valid. So with 2 more: {}/a.csv:204, {}/a.csv:205",
    ),
    "unknown encoding": (
        {"a.csv": HEAD.encode() + b"caf\xe9,1\nna\xefve,0\n" * 3},
        {"train": "a.csv"},
        "a.csv: neither UTF-8, UTF-16 nor GB18030: byte 0xe9 at offset 14, line 2. Name its encoding, for example "
        "data.encoding=latin-1",
    ),
    "misspelt encoding": ({}, {"encoding": "utf-9"}, "no encoding is called 'utf-9'. Did you mean 'utf-8'?"),
    "no text at all": ({"a.csv": bytes(range(256)) * 20}, {"train": "a.csv"}, "a.csv: "),
    "an archive": ({"a.csv": b"PK\x03\x04zip"}, {"train": "a.csv"}, "a.csv: is a zip archive"),
    "half a parquet file": ({"a.parquet": b"PAR1xxxx"}, {"train": "a.parquet"}, "a.parquet: not a whole Parquet file"),
    "label unknown to training": (
        {"test.csv": HEAD + "a,1\n\nb,9\n"},
        {"test": "test.csv"},
        "test.csv:4: column 'label': label '9' does not occur in the training rows. Known: 0, 1. The row is of "
        "data.test: correct it, remove it, or add rows like it to data.train",
    ),
    "label unknown, column renamed": (
        {"v.csv": "review,stars\na,good\n", "t.csv": "review,stars\nthe b,1\nthe c,0\n"},
        {"train": "t.csv", "valid": "v.csv", "text": "review", "label": "stars", "split": {"test": 0}},
        "v.csv:2: column 'stars': label 'good' does not occur",
    ),
    "a folder of nothing": ({"sub/x.md": "x"}, {"train": "sub"}, "sub: no data file in this folder"),
    "a glob of nothing": ({}, {"train": "*.parquet"}, "*.parquet: no file matches"),
    "broken header": ({"a.csv": '"text" x,label\na,1\n'}, {"train": "a.csv"}, "a.csv:1: the header cannot be read"),
    "bytes for a text": (
        {"a.parquet": b"BYTES"},
        {"train": "a.parquet"},
        "a.parquet:1: column 'text': the text is bytes b'a'",
    ),
    "two characters for a delimiter": (
        {},
        {"delimiter": "||"},
        "train.csv: data.delimiter is '||'; for CSV it is one character",
    ),
    "no room in max_length": (
        {},
        {"max_length": 2, "model": "transformer"},
        "data.max_length is 2, and 2 tokens enclose each text",
    ),
}


@pytest.mark.parametrize("situation", ERRORS)
def test_a_mistake_is_one_message(situation: str, folder: Path) -> None:
    files, change, words = ERRORS[situation]
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if data == b"BYTES":
            parquet.write_table(pa.table({"text": [b"a", b"b"], "label": [1, 0]}), folder / name)
        else:
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises((DataError, ConfigError)) as raised:
        prepare(experiment(folder, **change))
    message = str(raised.value)
    assert words.replace("{}", str(folder)) in message
    assert "\n" not in message or "rows were refused" in message
    assert not list((folder / "runs").glob(".prepared/*/")), "nothing half made is left"


def test_a_wide_file_is_not_a_wall_of_names(folder: Path) -> None:
    (folder / "a.csv").write_text(",".join(f"column{i}" for i in range(500)) + "\n" + "," * 499 + "\n")
    with pytest.raises(DataError, match="and 480 more. Name the one") as raised:
        prepare(experiment(folder, train="a.csv"))
    assert len(str(raised.value)) < 700


# ---- several processes, kills, full disks

FORKED = multiprocessing.get_context("fork")  # what is imported here need not be imported again


def start(base: Experiment) -> tuple[Any, Any]:
    """A process that prepares, and the pipe on which it says what it does; its last word is `fresh`."""
    here, there = FORKED.Pipe(duplex=False)
    child = FORKED.Process(target=lambda: there.send(prepare(base, there.send).fresh))
    child.start()
    there.close()
    return child, here


def test_two_processes_at_once_prepare_once(folder: Path) -> None:
    (folder / "train.csv").write_text("text,label\n" + ROWS * 10)
    prepared = prepare(experiment(folder, cache=str(folder / "alone")))
    both = [start(experiment(folder, output=f"runs/{name}")) for name in "abc"]
    last = []
    for child, said in both:
        while not isinstance(word := said.recv(), bool):
            pass
        last.append(word)
        child.join(60)
        assert child.exitcode == 0
    assert sorted(last) == [False, False, True]
    assert content(folder / "runs/.prepared" / prepared.fingerprint) == content(prepared.path)
    assert len(list((folder / "runs/.prepared").glob("*/"))) == 1


@pytest.mark.parametrize("moment", ["reading", "learning", "encoding"])
def test_a_killed_preparation_leaves_nothing_that_is_used_and_the_next_removes_it(moment: str, folder: Path) -> None:
    (folder / "train.csv").write_text("text,label\n" + ROWS * 50)
    killed, said = start(experiment(folder))
    while moment not in said.recv():
        pass
    killed.kill()
    killed.join(30)
    assert killed.exitcode == -signal.SIGKILL
    assert list((folder / "runs/.prepared").glob("*.*/")), "it was in the middle of it"
    prepared = prepare(experiment(folder))
    assert prepared.fresh
    assert [path.name for path in (folder / "runs/.prepared").glob("*/")] == [prepared.fingerprint]


def test_a_damaged_folder_is_made_anew(folder: Path) -> None:
    first = prepare(experiment(folder))
    before = content(first.path)
    for damage in ("samples/train-00000-00000.arrow", "prepared.json", "processor/tokenizer.json"):
        data = (first.path / damage).read_bytes()
        (first.path / damage).write_bytes(data[: len(data) // 2])
        again = prepare(experiment(folder))
        assert again.fresh and content(again.path) == before
    (first.path / "rows/test-00000.arrow").unlink()
    assert prepare(experiment(folder)).fresh


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses what goes beyond, as it does where no space is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_message_and_leaves_nothing_behind(folder: Path) -> None:
    tokenizer = {"type": "bpe", "min_frequency": 1}  # its file is larger than those of the rows
    whole = prepare(experiment(folder, tokenizer=tokenizer, cache=str(folder / "whole")))
    sizes = {file.name: file.stat().st_size for file in whole.path.rglob("*") if file.is_file()}
    assert sizes["tokenizer.json"] > sizes["train-00000.arrow"]
    for size in (0, sizes["train-00000.arrow"] // 2, sizes["tokenizer.json"] - 1):
        with pytest.raises(ResourceError, match="cannot be written: .*File too large"), no_file_larger_than(size):
            prepare(experiment(folder, tokenizer=tokenizer))
        assert not list((folder / "runs/.prepared").glob("*/"))
    assert prepare(experiment(folder, tokenizer=tokenizer)).fresh


def test_a_cache_that_cannot_be_written_is_one_message(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(ResourceError, match=f"{folder}/file.*: cannot be written: Not a directory"):
        prepare(experiment(folder, cache=str(folder / "file" / "cache")))
    with pytest.raises(ResourceError, match=f"{folder}/file.*: cannot be written: "):
        prepare(experiment(folder, output="file/out", cache=str(folder / "cache")))


# ---- memory


def rss_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def test_samples_are_mapped_and_not_loaded(tmp_path: Path) -> None:
    ids = np.arange(500_000, dtype=np.int32)
    samples = [{"input_ids": ids, "num_tokens": len(ids), "labels": 0}] * 40
    path = tmp_path / "train-00000.arrow"
    arrow.write(path, arrow.sample_table(samples, [len(ids)] * 40))
    assert path.stat().st_size > 75e6
    del samples
    before = rss_mb()
    opened = arrow.Samples([path])
    assert len(opened) == 40 and opened[39]["input_ids"][-1] == 499_999
    assert rss_mb() - before < 10
    assert not opened[0]["input_ids"].flags.owndata


READING = """
import resource, sys
from bigmodel.data.sources import open_rows
from bigmodel.data.record import ReadOptions
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
names, rows = open_rows(sys.argv[1], ReadOptions())
next(rows)
start = peak()
print(sum(1 for row in rows), peak() - start)
"""


@pytest.mark.parametrize("text", ["a plain text of some words", '"a text, quoted"', "很好吃，下次再来"])
def test_a_large_file_is_read_at_flat_memory(text: str, tmp_path: Path) -> None:
    with open(tmp_path / "large.csv", "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for _ in range(8):
            file.write(f"{text},1\n" * 50_000)
    command = [sys.executable, "-c", READING, str(tmp_path / "large.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    rows, grown = done.stdout.split()
    assert int(rows) == 399_999
    assert float(grown) < 24, "megabytes"


# ---- on Ray Data


@pytest.mark.timeout(300)
def test_ray_data_prepares_the_same_folder_to_the_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from bigmodel import cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rows = [line.rsplit(",", 1) for line in ROWS.splitlines()]
    table = pa.table({"text": [text for text, _ in rows], "label": [int(label) for _, label in rows]})
    parquet.write_table(table, folder / "b.parquet", row_group_size=50)
    (folder / "c.csv").write_text(SOME_BAD)
    files = ["train.csv", "b.parquet", "c.csv"]
    here = prepare(experiment(folder, train=files, cache=str(folder / "here"), max_bad=0.1))
    ours = cluster.connect(num_cpus=2)
    try:
        there = prepare(
            experiment(
                folder, train=files, cache=str(folder / "there"), max_bad=0.1, distributed="always", output="runs/r"
            )
        )
        assert there.fresh and there.fingerprint == here.fingerprint
        assert content(there.path) == content(here.path)
        assert (folder / "runs/r/quarantine.jsonl").read_text().count("\n") == 3

        (folder / "bad.csv").write_text("text,stars\na,1\n")
        with pytest.raises(DataError, match="bad.csv: no column 'label'"):
            prepare(experiment(folder, train=["train.csv", "bad.csv"], distributed="always"))
        (folder / "test.csv").write_text("text,label\na,7\n")
        with pytest.raises(DataError, match="test.csv:2: column 'label': label '7' does not occur"):
            prepare(experiment(folder, test="test.csv", distributed="always"))
    finally:
        if ours:
            ray.shutdown()


def test_a_node_that_does_not_share_the_folder_says_so(folder: Path) -> None:
    elsewhere = Piece(experiment(folder), str(folder / "train.csv"), None, str(folder / "not-mounted-here/00000.arrow"))
    answer = _attempt(_clean_piece, [elsewhere], {"i": 0})
    assert answer["error"] == "ResourceError"
    assert answer["message"].startswith(f"{folder}/not-mounted-here")
    assert (
        "The nodes of a cluster must share the folder of prepared data: name one with data.cache" in answer["message"]
    )


def test_row_groups_of_parquet_are_pieces_that_keep_their_line_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigmodel.data import sources
    from bigmodel.data.record import ReadOptions

    table = pa.table({"text": [f"text {i}" for i in range(1, 101)], "label": [i % 2 for i in range(100)]})
    parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    monkeypatch.setattr(sources, "PIECE", 200)
    pieces = sources.pieces(str(folder / "a.parquet"), ReadOptions())
    assert len(pieces) > 3
    read = [
        row for piece in pieces for row in sources.open_rows(str(folder / "a.parquet"), ReadOptions(), None, piece)[1]
    ]
    assert [(row.line, row.values["text"]) for row in read] == [(i, f"text {i}") for i in range(1, 101)]  # type: ignore[union-attr]


def test_rows_held_out_are_not_told_of_where_they_are_not_the_matter(folder: Path) -> None:
    (folder / "a.csv").write_text("text,label\n" + "".join(f"word{i},{i % 2}\n" for i in range(40)))
    with pytest.raises(DataError, match="min_frequency=2 times: name less$"):
        prepare(experiment(folder, train="a.csv"))


def test_images_under_another_task_are_named(folder: Path) -> None:
    (folder / "pets/cats").mkdir(parents=True)
    (folder / "pets/cats/1.png").write_bytes(b"")
    with pytest.raises(DataError, match="pets: holds images, which are read with task: image-classification"):
        prepare(experiment(folder, train="pets"))


def test_a_label_to_be_renamed_that_no_row_has_is_said(folder: Path) -> None:
    lines: list[str] = []
    prepare(experiment(folder, relabel={"0": "neg", "2": "none", " 1": "pos"}), lines.append)
    assert "data.relabel names ' 1', '2', which no row has as its label" in lines


def test_refused_rows_are_told_with_a_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.csv").write_text(SOME_BAD)
    prepared = prepare(experiment(folder, max_bad=0.1))
    Display()({"kind": "prepared", "fresh": True, "path": str(prepared.path), **prepared.counts})
    first, second = capsys.readouterr().out.splitlines()
    assert "(3 refused" in first
    assert f"refused, such as {folder / 'train.csv'}:202: row has 1 field, header has 2. quarantine.jsonl" in second
