"""prepare(experiment) -> Prepared: read, clean, split, fit, encode, once. The result is a folder named by a fingerprint
of the sources' content and of everything that shaped it; whoever comes next with the same fingerprint opens it.

    cleaned/     one file a source: rows, line numbers, md5 of the content          a unit of work each,
    rows/        one or more files a split: what report and baselines read           in this process or
    samples/     the same rows, encoded                                              as tasks of Ray Data
    processor/   what was learnt from the training rows
    quarantine.jsonl, prepared.json (written last)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigmodel import tasks
from bigmodel.data import arrow
from bigmodel.data.clean import clean, read_options
from bigmodel.data.files import digest, resolve
from bigmodel.data.quarantine import Quarantine
from bigmodel.data.record import Bad
from bigmodel.errors import DataError, ResourceError
from bigmodel.experiment import Experiment, SplitConfig
from bigmodel.tasks.base import Row

VERSION = 1  # of the layout and of what preparation does; a change prepares anew
SPLITS = ("train", "valid", "test")
BIG = 256 * 2**20  # bytes of source from which Ray Data takes over on a cluster
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """An opened folder of prepared data."""

    path: Path
    fingerprint: str
    learnt: dict[str, Any]
    counts: dict[str, Any]
    fresh: bool
    """Made by this call, not found."""

    def rows(self, split: str) -> arrow.Rows:
        return arrow.Rows(_parts(self.path / "rows", split))

    def samples(self, split: str) -> arrow.Samples:
        return arrow.Samples(_parts(self.path / "samples", split))

    def processor(self) -> Any:
        return _processor(self.path / "processor")

    def size(self, split: str) -> int:
        return int(self.counts["splits"][split])


def prepare(experiment: Experiment, say: Say = lambda line: None) -> Prepared:
    """Prepare the experiment's data, or open what an earlier call prepared. DataError, ResourceError."""
    sources = _sources(experiment)
    fingerprint = _fingerprint(experiment, sources)
    path = experiment.cache_path / fingerprint
    if (path / "prepared.json").exists():
        return open_prepared(path, fresh=False)
    say("preparing the data: reading and cleaning")
    building = path.with_name(f"{fingerprint}.{uuid.uuid4().hex[:8]}")
    try:
        building.mkdir(parents=True)
        _build(building, experiment, sources, fingerprint, say)
        _publish(building, path)
    except OSError as e:
        raise ResourceError(f"{experiment.cache_path}: prepared data cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_prepared(path, fresh=True)


def open_prepared(path: Path, fresh: bool = False) -> Prepared:
    stored = json.loads((path / "prepared.json").read_text("utf-8"))
    learnt = stored["learnt"]
    if "id2label" in learnt:
        learnt["id2label"] = {int(i): label for i, label in learnt["id2label"].items()}
    return Prepared(path, stored["fingerprint"], learnt, stored["counts"], fresh)


def _sources(experiment: Experiment) -> list[tuple[str, str]]:
    """(split, file) of every source; the files of `data.train` also give the splits that name none."""
    data = experiment.data
    named = {"train": data.train, "valid": data.valid, "test": data.test}
    return [(split, source) for split, spec in named.items() if spec is not None for source in resolve(spec)]


def _fingerprint(experiment: Experiment, sources: Sequence[tuple[str, str]]) -> str:
    import tokenizers

    shape = {
        "version": VERSION,
        "tokenizers": tokenizers.__version__,
        "task": experiment.task,
        "data": experiment.data.model_dump(
            exclude={"train", "valid", "test", "augment", "cache", "distributed", "max_bad"}
        ),
        "shaped_by": tasks.get(experiment.task).shaped_by(experiment),
        "sources": [(split, source, digest(source)) for split, source in sources],
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:20]


def _build(path: Path, experiment: Experiment, sources: Sequence[tuple[str, str]], fingerprint: str, say: Say) -> None:
    task = tasks.get(experiment.task)
    every = _ray_map if _on_ray(experiment, sources) else _map
    for folder in ("cleaned", "rows", "samples"):
        (path / folder).mkdir()
    units = [(experiment, source, str(path / "cleaned" / f"{i:05d}")) for i, (_, source) in enumerate(sources)]
    num_refused = _quarantine(path, experiment, every(_clean_source, units))
    counts = _split(path, experiment, [split for split, _ in sources]) | {"refused": num_refused}
    if not counts["splits"]["train"]:
        raise DataError(f"{', '.join(source for _, source in sources)}: no row is left to train on")
    say(f"preparing the data: {counts['rows']:,} rows; learning labels and vocabulary")
    processor, learnt = task.fit(partial(iter, arrow.Rows(_parts(path / "rows", "train"))), experiment)
    processor.save_pretrained(path / "processor")
    say("preparing the data: encoding")
    every(_encode_part, [(experiment.task, str(part), learnt) for part in sorted((path / "rows").iterdir())])
    shutil.rmtree(path / "cleaned")
    stored = {"fingerprint": fingerprint, "learnt": learnt, "counts": counts}
    (path / "prepared.json").write_text(json.dumps(stored, ensure_ascii=False, indent=1), "utf-8")


def _publish(building: Path, path: Path) -> None:
    """Put the folder in its place; if another process was faster, theirs is the same."""
    try:
        os.rename(building, path)
    except OSError:
        if not (path / "prepared.json").exists():
            raise


# ---- units of work: a function of plain values that writes its own file, so that any process can do it


def _clean_source(unit: tuple[Experiment, str, str]) -> dict[str, int]:
    """Clean one file: rows with line and md5 to `out`.arrow, refused ones to `out`.bad."""
    experiment, source, out = unit
    task = tasks.get(experiment.task)
    found = clean(source, task, task.columns(experiment.data), read_options(experiment.data))
    num_rows = num_bad = 0
    with open(f"{out}.bad", "w", encoding="utf-8") as bad_file, _Writer(f"{out}.arrow") as writer:
        for item in found:
            if isinstance(item, Bad):
                bad_file.write(json.dumps([item.source, item.line, item.column, item.reason, item.raw]) + "\n")
                num_bad += 1
            else:
                md5 = hashlib.md5(task.content(item.row).encode("utf-8", "surrogatepass"), usedforsecurity=False)
                writer.add(
                    item.row
                    | {"source": source, "line": item.line, "md5": md5.digest(), "target": task.target(item.row)}
                )
                num_rows += 1
    return {"rows": num_rows, "refused": num_bad}


def _encode_part(unit: tuple[str, str, dict[str, Any]]) -> dict[str, int]:
    """Encode one file of rows into the file of samples of the same name."""
    name, part, learnt = unit
    task, path = tasks.get(name), Path(part)
    processor = _processor(path.parent.parent / "processor")
    rows = arrow.Rows([path])
    samples = task.encode(rows[:], processor, learnt)
    table = arrow.sample_table(samples, [task.length(sample) for sample in samples])
    arrow.write(path.parent.parent / "samples" / path.name, table)
    return {"samples": len(samples)}


def _processor(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _map(unit_of_work: Callable[[Any], dict[str, int]], units: Sequence[Any]) -> list[dict[str, int]]:
    return [unit_of_work(unit) for unit in units]


def _ray_map(unit_of_work: Callable[[Any], dict[str, int]], units: Sequence[Any]) -> list[dict[str, int]]:
    """The same units as Ray Data tasks, on whatever nodes; the folder must be shared among them."""
    import ray.data

    done = ray.data.from_items([{"i": i} for i in range(len(units))], override_num_blocks=len(units)).map(
        lambda item: item | unit_of_work(units[item["i"]])
    )
    return sorted(done.take_all(), key=lambda item: int(item["i"]))


def _on_ray(experiment: Experiment, sources: Sequence[tuple[str, str]]) -> bool:
    if experiment.data.distributed != "auto":
        return experiment.data.distributed == "always"
    size = sum(os.path.getsize(source) for _, source in sources if os.path.exists(source))
    return bool(os.environ.get("RAY_ADDRESS")) and size >= BIG


# ---- quarantine and split, in this process: they look across all files


def _quarantine(path: Path, experiment: Experiment, done: Sequence[dict[str, int]]) -> int:
    with Quarantine(experiment.output_path / "quarantine.jsonl") as quarantine:
        for i, counts in enumerate(done):
            quarantine.num_rows += counts["rows"]
            with open(path / "cleaned" / f"{i:05d}.bad", encoding="utf-8") as lines:
                for line in lines:
                    quarantine.add(Bad(*json.loads(line)))
        quarantine.check(experiment.data.max_bad)
    shutil.copyfile(quarantine.path, path / "quarantine.jsonl")
    return quarantine.num_bad


def _split(path: Path, experiment: Experiment, declared: Sequence[str]) -> dict[str, Any]:
    """Rows of all sources to the files of their split; counts duplicates, conflicting labels, rows in two splits."""
    seen: dict[bytes, tuple[str, int]] = {}  # md5 -> target, bit of each split it stands in
    counts = {"rows": 0, "duplicates": 0, "conflicting_labels": 0, "also_in_training": 0}
    writers = {split: _PartWriter(path / "rows", split) for split in SPLITS}
    open_fractions = _fractions(experiment, declared)
    for i, named in enumerate(declared):
        for row in _cleaned(path / "cleaned" / f"{i:05d}.arrow"):
            md5, target = row.pop("md5"), row.pop("target")
            split = place(md5, *open_fractions) if named == "train" else named
            first, bits = seen.get(md5, (target, 0))
            counts["rows"] += 1
            counts["duplicates"] += bits != 0
            counts["conflicting_labels"] += first != target
            counts["also_in_training"] += split != "train" and bool(bits & 1)
            seen[md5] = first, bits | 1 << SPLITS.index(split)
            writers[split].add(row)
    return counts | {"splits": {split: writer.close() for split, writer in writers.items()}}


def _fractions(experiment: Experiment, declared: Sequence[str]) -> tuple[Fraction, Fraction]:
    split: SplitConfig = experiment.data.split
    valid, test = (0 if "valid" in declared else split.valid), (0 if "test" in declared else split.test)
    return Fraction(valid).limit_denominator(1000), Fraction(test).limit_denominator(1000)


def place(md5: bytes, valid: Fraction, test: Fraction) -> str:
    """The split of a row: a test fraction of 1/5 takes md5 % 5 == 0; validation is cut the same way from md5 // 5."""
    number = int.from_bytes(md5, "big")
    if number % test.denominator < test.numerator:
        return "test"
    rest = valid / (1 - test)
    return "valid" if number // test.denominator % rest.denominator < rest.numerator else "train"


def _cleaned(path: Path) -> Iterator[dict[str, Any]]:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
        for batch in stream:
            yield from batch.to_pylist()


class _Writer:
    """Rows to an Arrow stream, some thousand at a time; the schema is that of the first rows."""

    def __init__(self, path: str) -> None:
        self._path, self._rows = path, list[Row]()
        self._writer: Any = None
        self._schema: Any = None

    def __enter__(self) -> _Writer:
        return self

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == 8192:
            self._flush()

    def _flush(self) -> None:
        batch = pa.RecordBatch.from_pylist(self._rows, self._schema)
        if self._writer is None:
            self._schema, self._writer = batch.schema, pa.ipc.new_stream(self._path, batch.schema)
        self._writer.write_batch(batch)
        self._rows = []

    def __exit__(self, *_: object) -> None:
        if self._rows or self._writer is None:
            self._flush()
        self._writer.close()


class _PartWriter:
    """Rows of one split to part files of at most `arrow.PART_ROWS` rows; none is written for no rows."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split, self._rows = folder, split, list[Row]()
        self._num_parts = self._num_rows = 0

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == arrow.PART_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrow.write(self._folder / f"{self._split}-{self._num_parts:05d}.arrow", pa.Table.from_pylist(self._rows))
        self._num_parts, self._num_rows, self._rows = self._num_parts + 1, self._num_rows + len(self._rows), []

    def close(self) -> int:
        if self._rows:
            self._flush()
        return self._num_rows


def _parts(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.arrow"))
