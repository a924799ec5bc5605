"""prepare(experiment) -> Prepared: read, clean, split, fit, encode, once. The result is a folder named by a fingerprint
of the sources' content and of everything that shaped it; whoever comes next with the same fingerprint opens it.

    cleaned/     a file for each piece of the sources: rows, line, md5        a unit of work each,
    rows/        one or more files a split: what report and baselines read    in this process or
    samples/     the same rows, encoded                                       as tasks of Ray Data
    processor/   what was learnt from the training rows
    quarantine.jsonl, prepared.json (written last)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel import cluster, errors, tasks
from bigmodel.data import arrow, images, quarantine
from bigmodel.data.clean import clean, read_options
from bigmodel.data.cleaned import CleanedFile, in_batches
from bigmodel.data.digests import digests
from bigmodel.data.files import resolve, size
from bigmodel.data.progress import Progress, advance, following
from bigmodel.data.quarantine import Quarantine
from bigmodel.data.sources import holds_bytes, is_of_images, open_rows, pieces
from bigmodel.data.split import Parts, distribute
from bigmodel.errors import BigmodelError, DataError, ResourceError
from bigmodel.experiment import Experiment
from bigmodel.tasks.base import Alike, Refused, Row, Sample, Task

VERSION = 11  # of the layout and of what preparation does; a change prepares anew
BIG = 256 * 2**20  # bytes of source from which Ray Data takes over on a cluster
ENCODED, ENCODED_BYTES = 2048, 16 << 20  # rows encoded at once: what the tokenizer returns is large, and so are pixels
FIRST = 32  # rows of a file by which it is known how large their samples are
HELD_OUT = {"valid": "validation", "test": "the test"}
SHOWN = 5  # further places in a message
Say = Callable[[str], None]
Every = Callable[[Callable[[Any], dict[str, Any]], Sequence[Any]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Prepared:
    """An opened folder of prepared data."""

    path: Path
    fingerprint: str
    learnt: dict[str, Any]
    counts: dict[str, Any]
    fresh: bool
    """Made by this call, not found."""
    task: str

    def rows(self, split: str) -> arrow.Rows:
        return arrow.Rows(_parts(self.path / "rows", split))

    def samples(self, split: str) -> arrow.Samples:
        return arrow.Samples(_parts(self.path / "samples", split))

    def processor(self) -> Any:
        return tasks.get(self.task).load_processor(self.path / "processor")

    def size(self, split: str) -> int:
        return int(self.counts["splits"][split])


def prepare(experiment: Experiment, say: Say = lambda line: None, agree: Say | None = None) -> Prepared:
    """Prepare the experiment's data, or open what an earlier call prepared. DataError, ResourceError.

    `agree` is told the fingerprint before anything is written, and may raise.
    """
    sources = _sources(experiment)
    fingerprint = _fingerprint(experiment, sources)
    if agree is not None:
        agree(fingerprint)
    path = experiment.cache_path / fingerprint
    fresh = False
    try:
        if not _is_whole(path):
            with _alone(path, say):
                if fresh := not _is_whole(path):
                    _make(path, experiment, sources, say)
        prepared = open_prepared(path, fresh)
        _hand_over(path, experiment, prepared.counts["rows"], prepared.counts["refused"])
    except OSError as error:
        where = error.filename or experiment.cache_path
        raise ResourceError(f"{where}: cannot be written: {error.strerror or error}") from error
    return prepared


def open_prepared(path: Path, fresh: bool = False) -> Prepared:
    stored = json.loads((path / "prepared.json").read_text("utf-8"))
    learnt = stored["learnt"]
    if "id2label" in learnt:
        learnt["id2label"] = {int(i): label for i, label in learnt["id2label"].items()}
    return Prepared(path, path.name, learnt, stored["counts"], fresh, stored["task"])


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
        "sources": [
            (*source, sha256)
            for source, sha256 in zip(
                sources, digests([file for _, file in sources], experiment.cache_path), strict=True
            )
        ],
    }
    if column := tasks.get(experiment.task).columns(experiment.data).get("image"):
        shape["images"] = [_named_images(experiment, source, column) for _, source in sources]
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:20]


def _named_images(experiment: Experiment, source: str, column: str) -> str:
    """What tells that the images which a table names are still the same."""
    options = read_options(experiment.data)
    if is_of_images(source, options) or holds_bytes(source, options, column):
        return ""
    _, rows = open_rows(source, options, [column])
    return images.named_by(source, rows, column)


# ---- the folder: made beside its place, by one process at a time, and put there when it is whole


def _is_whole(path: Path) -> bool:
    """Every file that was made is there, and as long as it was."""
    try:
        sizes = json.loads((path / "prepared.json").read_text("utf-8"))["files"]
        return all((path / name).stat().st_size == length for name, length in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def _alone(path: Path, say: Say) -> Iterator[None]:
    """Nobody else makes this folder meanwhile; the lock goes when the process goes, however it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is preparing the same data: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(path: Path, experiment: Experiment, sources: Sequence[tuple[str, str]], say: Say) -> None:
    for leftover in path.parent.glob(f"{path.name}.*/"):  # of processes that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    building = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    building.mkdir()
    try:
        say("preparing the data: reading and cleaning")
        stored = _build(building, experiment, sources, say)
        stored["files"] = {str(file.relative_to(building)): file.stat().st_size for file in _files(building)}
        (building / "prepared.json").write_text(json.dumps(stored, ensure_ascii=False, indent=1), "utf-8")
        shutil.rmtree(path, ignore_errors=True)  # damaged, if there is one
        os.rename(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _build(path: Path, experiment: Experiment, sources: Sequence[tuple[str, str]], say: Say) -> dict[str, Any]:
    task = tasks.get(experiment.task)
    for folder in ("cleaned", "rows", "samples"):
        (path / folder).mkdir()
    with _workers(experiment, sources) as every:
        cleaned, counts = _clean(path, experiment, sources, every, say)
        for note in filter(None, (images.passed_over(source) for _, source in sources)):
            say(note)
        counts |= distribute(cleaned, path / "rows", experiment.data.split)
        shutil.rmtree(path / "cleaned")
        if not counts["splits"]["train"]:
            raise DataError(f"{_named(sources)}: no row is left to train on{_held_out(experiment, counts)}")
        say(f"preparing the data: {counts['rows']:,} rows; learning labels and vocabulary")
        learnt = _fit(path, experiment, task, sources, counts)
        for note in learnt.pop("notes", ()):
            say(note)
        say("preparing the data: encoding")
        units = [(experiment, str(part), learnt) for part in sorted((path / "rows").iterdir())]
        with following(Progress(say, "encoding", total_rows=counts["rows"])):
            every(_encode_part, units)
    return {"task": experiment.task, "learnt": learnt, "counts": counts}


def _fit(
    path: Path, experiment: Experiment, task: Task, sources: Sequence[tuple[str, str]], counts: Mapping[str, Any]
) -> dict[str, Any]:
    rows = arrow.Rows(_parts(path / "rows", "train"))
    try:
        processor, learnt = task.fit(partial(iter, rows), experiment)
    except DataError as error:
        others = _held_out(experiment, counts) if isinstance(error, Alike) else ""
        raise DataError(f"{_named(sources)}: {error}{others}") from None
    try:
        processor.save_pretrained(path / "processor")
    except OSError:
        raise
    except Exception as error:  # tokenizers has no other class for what the disk refuses
        raise OSError(f"{path / 'processor'}: {error}") from error
    return learnt


def _named(sources: Sequence[tuple[str, str]]) -> str:
    """The files of the training rows, in a message."""
    first, *others = [source for split, source in sources if split == "train"]
    return f"{first} and {len(others)} more" if others else first


def _held_out(experiment: Experiment, counts: Mapping[str, Any]) -> str:
    """What else became of the training files' rows, and what to do where that is the matter; nothing if it is not."""
    data = experiment.data
    cut = [name for name in ("valid", "test") if getattr(data, name) is None and counts["splits"][name]]
    if not cut:
        return ""
    rows = " and ".join(f"{counts['splits'][name]:,} for {HELD_OUT[name]}" for name in cut)
    lower, named = (" and ".join(f"data.{at}{name}" for name in cut) for at in ("split.", ""))
    return f" (held out: {rows}). Add rows, change {lower}, or name files with {named}"


# ---- units of work: a function of plain values that writes its own file, so that any process can do it


class Piece(NamedTuple):
    """A file to clean, or some of its row groups."""

    experiment: Experiment
    source: str
    groups: range | None
    out: str


def _clean(
    path: Path, experiment: Experiment, sources: Sequence[tuple[str, str]], every: Every, say: Say
) -> tuple[list[tuple[str, Path]], dict[str, Any]]:
    """(split, cleaned file) in the order of the sources; counts. What is refused goes to quarantine.jsonl."""
    options = read_options(experiment.data)
    cut = [(split, source, groups) for split, source in sources for groups in pieces(source, options)]
    out = [path / "cleaned" / f"{i:05d}.arrow" for i in range(len(cut))]
    units = [Piece(experiment, source, groups, str(file)) for (_, source, groups), file in zip(cut, out, strict=True)]
    total_bytes = sum(size(source) for source in {source for _, source, _ in cut})
    with following(Progress(say, "reading and cleaning", total_bytes)):
        done = every(_clean_piece, units)
    with open(path / "quarantine.jsonl", "wb") as together:
        for file in out:
            with open(file.with_suffix(".bad"), "rb") as part:
                shutil.copyfileobj(part, together)
    rows, refused = (sum(counts[name] for counts in done) for name in ("rows", "refused"))
    _hand_over(path, experiment, rows, refused)
    if unmet := experiment.data.relabel.keys() - {label for counts in done for label in counts["renamed"]}:
        say(f"data.relabel names {', '.join(map(repr, sorted(unmet)))}, which no row has as its label")
    return [(split, file) for (split, _, _), file in zip(cut, out, strict=True)], {"refused": refused}


def _clean_piece(piece: Piece) -> dict[str, Any]:
    """Clean a piece of a file: rows with line and md5 to `out`, refused ones beside it."""
    data, out = piece.experiment.data, Path(piece.out)
    task = tasks.get(piece.experiment.task)
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(out.parent))
    with Quarantine(out.with_suffix(".bad")) as refused, CleanedFile(out, task) as file:
        renamed = set[str]()
        items = clean(piece.source, task, task.columns(data), read_options(data), piece.groups, renamed=renamed)
        for some in in_batches(refused.good(items)):
            file.write(some)
            advance(num_rows=len(some))
    if not refused.num_rows and not refused.num_bad:
        raise DataError(f"{piece.source}: holds no row")
    return {"rows": refused.num_rows, "refused": refused.num_bad, "renamed": sorted(renamed)}


def _encode_part(unit: tuple[Experiment, str, dict[str, Any]]) -> dict[str, int]:
    """Encode one file of rows into a file of samples, or several where they are much larger, as those of images are."""
    experiment, part, learnt = unit
    task, path = tasks.get(experiment.task), Path(part)
    processor, rows = task.load_processor(path.parent.parent / "processor"), arrow.Rows([path])
    parts, split = Parts(path.parent.parent / "samples", path.stem, 2 * arrow.PART_BYTES), path.stem.partition("-")[0]
    start, at_once = 0, FIRST
    while start < len(rows):
        samples = _encode(experiment, task, split, rows, slice(start, start + at_once), processor, learnt)
        table = arrow.sample_table(samples, [task.length(sample) for sample in samples])
        parts.add(table)
        advance(num_rows=len(samples))
        start, at_once = start + len(samples), max(1, min(ENCODED, ENCODED_BYTES * len(samples) // table.nbytes))
    parts.close()
    return {"samples": len(rows)}


def _encode(
    experiment: Experiment,
    task: Task,
    split: str,
    rows: arrow.Rows,
    some: slice,
    processor: Any,
    learnt: Mapping[str, Any],
) -> list[Sample]:
    try:
        return task.encode(rows[some], processor, learnt)
    except Refused:
        rest = range(some.start, len(rows))
        refused = [(i, why) for i in rest if (why := _refusal(task, rows[i], processor, learnt))]
        if not refused:
            raise
    (first, why), *others = refused
    column = task.columns(experiment.data).get(why.column or "")
    where = _place(rows, first) + (f": column '{column}'" if column else "")
    raise DataError(f"{where}: {why.reason}. {_advice(experiment, split)}{_likewise(rows, others)}")


def _refusal(task: Task, row: Row, processor: Any, learnt: Mapping[str, Any]) -> Refused | None:
    """Why a row cannot be encoded; None if it can."""
    try:
        task.encode([row], processor, learnt)
    except Refused as refused:
        return refused
    return None


def _advice(experiment: Experiment, split: str) -> str:
    """What to do with a row that does not go with the training rows: it depends on who put it apart from them."""
    if split == "train":
        return "The columns were learnt from other training rows: correct this one or remove it"
    if getattr(experiment.data, split) is not None:
        return f"The row is of data.{split}: correct it, remove it, or add rows like it to data.train"
    return (
        f"The row fell to those held out for {HELD_OUT[split]}: correct it, remove it, add more rows like it, hold out "
        f"others with data.split.{split}, or name a file with data.{split}"
    )


def _likewise(rows: arrow.Rows, others: Sequence[tuple[int, Refused]]) -> str:
    if not others:
        return ""
    places = ", ".join(_place(rows, i) for i, _ in others[:SHOWN]) + (" ..." if len(others) > SHOWN else "")
    return f". So with {len(others):,} more: {places}"


def _place(rows: arrow.Rows, i: int) -> str:
    return ":".join(map(str, rows.place(i)))


def _parts(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.arrow"))


def _hand_over(path: Path, experiment: Experiment, num_rows: int, num_refused: int) -> None:
    """Refused rows are shown where the run's other results are, and stop it if they are too many."""
    shown = experiment.output_path / "quarantine.jsonl"
    shown.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path / "quarantine.jsonl", shown)
    quarantine.check(shown, num_rows, num_refused, experiment.data.max_bad)


# ---- who does the units


@contextmanager
def _workers(experiment: Experiment, sources: Sequence[tuple[str, str]]) -> Iterator[Every]:
    """This process; or, where the data is big and there is a cluster, tasks of Ray Data."""
    asked = experiment.data.distributed
    on_cluster = asked == "auto" and bool(os.environ.get("RAY_ADDRESS"))
    if asked != "always" and not (on_cluster and sum(size(source) for _, source in sources) >= BIG):
        yield _map
        return
    ours = cluster.connect()
    try:
        yield _ray_map
    finally:
        if ours:
            import ray

            ray.shutdown()


def _map(work: Callable[[Any], dict[str, int]], units: Sequence[Any]) -> list[dict[str, int]]:
    return [work(unit) for unit in units]


def _ray_map(work: Callable[[Any], dict[str, int]], units: Sequence[Any]) -> list[dict[str, int]]:
    """The same units as tasks of Ray Data, on whatever nodes; the folder must be shared among them."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    numbered = ray.data.from_items([{"i": i} for i in range(len(units))], override_num_blocks=len(units))
    done = numbered.map(partial(_attempt, work, units)).take_all()
    for failed in done:
        if failed["error"]:
            raise getattr(errors, failed["error"], DataError)(failed["message"])
    return [json.loads(item["counts"]) for item in sorted(done, key=lambda item: int(item["i"]))]


def _attempt(work: Callable[[Any], dict[str, int]], units: Sequence[Any], item: dict[str, Any]) -> dict[str, Any]:
    """A mistake of the user is an answer: what Ray would make of an exception is a traceback, three times over."""
    answer = {"i": item["i"], "counts": "", "error": "", "message": ""}
    try:
        return answer | {"counts": json.dumps(work(units[int(item["i"])]))}
    except BigmodelError as error:
        return answer | {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        where = f"{error.filename or 'prepared data'}: cannot be written on {os.uname().nodename}"
        reason = f"{where}: {error.strerror or error}"
        if isinstance(error, FileNotFoundError):
            reason += ". The nodes of a cluster must share the folder of prepared data: name one with data.cache"
        return answer | {"error": ResourceError.__name__, "message": reason}
