"""What the verbs do: a few calls of the parts, and what is said about them.

train      fit, then test on rows that training never saw: report.json beside the model
evaluate   the same report for other files and any model directory
predict    one answer a row, in order; a row that cannot be read is answered with the reason
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from bigmodel import experiment as experiments
from bigmodel import tasks
from bigmodel.complaints import complaint
from bigmodel.data import images
from bigmodel.data.clean import Placed, clean, read_options
from bigmodel.data.cleaned import keep
from bigmodel.data.files import is_remote, local, resolve, stored
from bigmodel.data.prepare import open_prepared, prepare
from bigmodel.data.progress import EVERY_S
from bigmodel.data.quarantine import Quarantine
from bigmodel.data.record import Bad
from bigmodel.errors import CheckpointError, ConfigError, DataError, ResourceError, did_you_mean
from bigmodel.experiment import DataConfig, Experiment, Problem
from bigmodel.predictor import Predictor, check_directory
from bigmodel.tasks import readers
from bigmodel.tasks.base import BLOCK, WHOLE, Answer, Refused, Task
from bigmodel.training.run import Run
from bigmodel.yaml_lines import parse

CHUNK = 4096  # rows read, answered and written together, fewer of files
UNTESTED = "none: no row was held out. `bigmodel evaluate` tests the model on other files"


def train(path: Path, overrides: Sequence[str] = (), fresh: bool = False) -> Run:
    """Train the experiment of a file to its end, or go on where it was; then test it, print and keep the report."""
    experiment = read_experiment(path, overrides)
    from bigmodel.training.display import Display
    from bigmodel.training.fit import fit

    with Display() as display:
        run = fit(experiment, fresh, display)
    report = read_json(run.report) if run.report.exists() else test(experiment, run)
    from bigmodel.evaluation.report import show

    if report:
        show(report)
    model = relative(run.model)
    say(f"model   {model}\nreport  {relative(run.report) if report else UNTESTED}\nserve   bigmodel serve {model}")
    return run


def read_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a file, checked as far as can be without reading the data."""
    experiment = experiments.load(path, overrides, check)
    quiet()
    return experiment


def check(tree: dict[str, Any]) -> list[Problem]:
    """What the sections cannot know by themselves: the model's fields, and what the task reads."""
    name = tree.get("task")
    if not isinstance(name, str) or name not in tasks.TASKS:
        return []
    from bigmodel import models, mup

    model = tree.get("model", {})
    problems: list[Problem] = []
    if isinstance(model, dict):
        model = experiments.of_a_type(model, name)
        problems = [(("model", key), message) for key, message in models.problems(model, name)]
    if not problems:
        try:
            refused = mup.refusal(Experiment.model_validate(tree))
            problems += [(("mup",), refused)] if refused else []
        except ValidationError:
            pass  # the sections say so themselves
    return problems + check_data(tree)


def check_data(tree: dict[str, Any]) -> list[Problem]:
    """The fields and columns that the task reads: known in an instant, as nothing of torch is imported."""
    name = tree.get("task")
    if not isinstance(name, str) or name not in tasks.TASKS:
        return []
    problems = readers.problems(tree, name)
    try:
        roles(tasks.get(name), DataConfig.model_validate(tree.get("data")))
    except ValidationError:
        pass  # the section says so itself
    except ConfigError as e:
        problems.append((("data",), str(e)))
    return problems


def roles(task: Task, data: DataConfig) -> dict[str, str]:
    """Role -> column. ConfigError where one is missing, or two are the same."""
    columns = task.columns(data)
    for (role, column), (other, same) in combinations(columns.items(), 2):
        if column == same:
            raise ConfigError(f"data.{role} and data.{other} are the same column, '{column}'. Name one for each")
    return columns


def test(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Score the test rows with the model directory of a finished run; writes report.json. -> {} if there are none."""
    from bigmodel.evaluation.evaluate import evaluate as score

    path = Path(run.info["prepared"])
    prepared = open_prepared(path) if (path / "prepared.json").exists() else prepare(experiment, say)
    split = "test" if prepared.size("test") else "valid"
    if not prepared.size(split):
        return {}
    say(f"testing on {prepared.size(split):,} rows")
    rows = prepared.rows(split)
    predictor = trained(run.model, experiment)
    report = score(predictor, rows, rows.place, training=lambda: iter(prepared.rows("train")), say=say)
    report = {"split": split, **report, "training": training(run, prepared.size("train"))}
    write_json(run.report, report)
    return report


def training(run: Run, num_rows: int) -> dict[str, Any]:
    """What the report says of the training."""
    progress = run.info["progress"]
    return {
        "rows": num_rows,
        "steps": progress["step"],
        "best_step": progress["best_step"],
        "seconds": round(progress["seconds"], 1),
        "samples_per_s": round(progress["samples"] / max(progress["seconds"], 1e-9), 1),
        "parameters": progress["parameters"],
        "precision": progress["precision"],
    }


def evaluate(
    model: Path,
    files: Sequence[str],
    output: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a model directory on files of labelled rows; print the report, and write it where asked."""
    refuse_folder(output)
    bad_path = (output or Path(tempfile.gettempdir()) / f"bigmodel-{os.getpid()}").with_suffix(".quarantine.jsonl")
    refuse_input_as_output(files, output, bad_path)
    predictor = load(model, device, precision)
    data = reading(predictor, changes)
    wanted = roles(predictor.task, data)
    from bigmodel.evaluation.evaluate import evaluate as score
    from bigmodel.evaluation.report import show

    with tempfile.TemporaryDirectory(prefix="bigmodel-") as folder:
        with Quarantine(bad_path) as quarantine:
            rows = keep(quarantine.good(found(files, predictor, data, wanted)), Path(folder))
            quarantine.check(data.max_bad)
        if quarantine.num_bad:
            say(f"{quarantine.num_bad:,} rows were refused: {bad_path}")
        else:
            bad_path.unlink()
        try:
            report = score(predictor, rows, rows.place, training=None, say=say)
        except Refused:
            placed = (Placed(row, *rows.place(i)) for i, row in enumerate(rows))
            raise first_unreadable(placed, predictor) from None
    show(report)
    if output:
        write_json(output, report)
        say(f"report  {output}")
    return report


def predict(
    model: Path,
    files: Sequence[str],
    output: Path | None = None,
    texts: Sequence[str] = (),
    explain: bool = False,
    device: str = "auto",
    precision: str = "auto",
    changes: Sequence[str] = (),
    asks: Sequence[str] = (),
) -> None:
    """Answer rows of files, or single texts, in order: JSON Lines to `output` or to standard output. `asks` are fields
    of the endpoint's request, `temperature=0.8`, for each of them."""
    if bool(files) == bool(texts):
        raise ConfigError("predict wants either files or --text 'a text to answer' (which may be given again)")
    if not explain:  # of images it draws into a folder
        refuse_folder(output)
    refuse_input_as_output(files, output)
    predictor = load(model, device, "fp32" if explain else precision)
    if "image" not in predictor.task.request(predictor.processor).model_fields:
        refuse_folder(output)
    options = wished(asks, predictor)
    if explain and options:
        raise ConfigError("--ask says how to answer, and --explain what decided: leave one of them out")
    if explain:
        explain_answers(predictor, files, texts, output, changes)
        return
    if texts:
        with writing(output) as out:
            rows = [row | options for row in rows_of(texts, predictor)]
            out.writelines(line(answer) for answer in predictor.predict(rows))
        return
    data = reading(predictor, changes)
    with writing(output) as out:
        items = found(files, predictor, data, asking(predictor, data))
        asked = (replace(item, row=item.row | options) if isinstance(item, Placed) else item for item in items)
        num_rows, num_bad = _answer(asked, predictor, out)
    if num_bad > data.max_bad * num_rows:
        raise DataError(
            f"{num_bad:,} of {num_rows:,} rows could not be read; the answers say why. data.max_bad allows "
            f"{data.max_bad:.2%}: mend the rows, or raise it with --set data.max_bad=1"
        )


def explain_answers(
    predictor: Predictor, files: Sequence[str], texts: Sequence[str], output: Path | None, changes: Sequence[str]
) -> None:
    """What decided each answer: to standard output, or JSON Lines, or pictures, to `output`."""
    from bigmodel.evaluation.explain import explainer

    module = explainer(predictor.name)
    if files:
        explanations = explained_files(files, predictor, module, reading(predictor, changes))
    else:
        explanations = module.explain(predictor, rows_of(texts, predictor))
    if output is None:
        module.show(explanations)
    elif explanations and "picture" in explanations[0]:
        keep_pictures(explanations, output)
    else:
        with writing(output) as out:
            out.writelines(line(explanation) for explanation in explanations)


def explained_files(files: Sequence[str], predictor: Predictor, module: Any, data: DataConfig) -> list[dict[str, Any]]:
    """Every row of the files with its place, its answer and what decided it. DataError at the first that cannot be."""
    placed = []
    for item in found(files, predictor, data, asking(predictor, data)):
        if isinstance(item, Bad):
            raise DataError(
                f"{item.source}:{item.line}: {item.reason}. Mend the row; without --explain it is passed over"
            )
        placed.append(item)
    try:
        explanations = module.explain(predictor, [item.row for item in placed])
    except Refused:
        raise first_unreadable(placed, predictor) from None
    return [
        {"file": item.source, "line": item.line, **explanation}
        for item, explanation in zip(placed, explanations, strict=True)
    ]


def keep_pictures(explanations: Sequence[dict[str, Any]], output: Path) -> None:
    """Pictures to a folder, or the only one to a .png file; what else is known of each, with its file, is printed."""
    alone = output.suffix.lower() == ".png"
    if alone and len(explanations) > 1:
        raise ConfigError(
            f"--output {output} is one picture, but {len(explanations)} images are asked about. Name a folder"
        )
    for number, explanation in enumerate(explanations, 1):
        name = Path(explanation["file"]).stem if "file" in explanation else "image"
        file = output if alone else output / f"{number:04d}-{name}.png"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(explanation["picture"])
        except OSError as e:
            raise ResourceError(f"{file}: cannot be written: {e.strerror or e}") from None
        print(line(explanation | {"picture": str(file)}), end="")


def asking(predictor: Predictor, data: DataConfig) -> dict[str, str]:
    """The roles and columns of rows without targets. A text to be gone on with is a row, no block of lines."""
    roles = predictor.task.columns(data).items()
    return {role: column for role, column in roles if role not in predictor.task.targets and column != BLOCK}


def readable(items: Sequence[Placed | Bad], predictor: Predictor) -> list[Placed | Bad]:
    """The same, those that the model cannot read refused: asked where together they could not be encoded."""
    checked: list[Placed | Bad] = []
    for item in items:
        try:
            if isinstance(item, Placed):
                predictor.encode([item.row])
            checked.append(item)
        except Refused as why:
            assert isinstance(item, Placed)
            checked.append(Bad(item.source, item.line, why.column, why.reason, ""))
    return checked


def first_unreadable(placed: Iterable[Placed], predictor: Predictor) -> DataError:
    wrong = next(item for one in placed for item in readable([one], predictor) if isinstance(item, Bad))
    return DataError(f"{wrong.source}:{wrong.line}: {wrong.reason}")


def _answer(items: Iterable[Placed | Bad], predictor: Predictor, out: IO[str]) -> tuple[int, int]:
    """Write a line for every item. -> how many there were, and how many of them could not be read."""
    num_rows = num_bad = 0
    began = last = time.monotonic()
    for chunk in _chunks(items, predictor):
        try:
            samples = predictor.encode([item.row for item in chunk if isinstance(item, Placed)])
        except Refused:
            chunk = readable(chunk, predictor)
            samples = predictor.encode([item.row for item in chunk if isinstance(item, Placed)])
        answers = iter(predictor.predict_samples(samples))
        for item in chunk:
            place = {"file": item.source, "line": item.line}
            if isinstance(item, Bad):
                num_bad += 1
                out.write(line(place | {"error": item.reason, "column": item.column}))
            else:
                out.write(line(place | next(answers)))
        num_rows += len(chunk)
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            say(f"{num_rows:,} rows answered  {num_rows / (last - began):,.0f} rows/s", sys.stderr)
    seconds = max(time.monotonic() - began, 1e-9)
    refused = f", {num_bad:,} of them could not be read" if num_bad else ""
    say(f"{num_rows:,} rows in {seconds:.1f} s ({num_rows / seconds:,.0f} rows/s){refused}", sys.stderr)
    return num_rows, num_bad


def _chunks(items: Iterable[Placed | Bad], predictor: Predictor) -> Iterator[list[Placed | Bad]]:
    """The same in lists: CHUNK of them, of files no more than are answered at once."""
    chunk: list[Placed | Bad] = []
    num_rows = at_once = 0
    for number, item in enumerate(items, 1):
        chunk.append(item)
        if isinstance(item, Placed):
            num_rows += 1
            at_once = at_once or predictor.at_once(item.row, CHUNK)
        if (at_once and num_rows >= at_once) or number % CHUNK == 0:
            yield chunk
            chunk, num_rows = [], 0
    if chunk:
        yield chunk


def trained(model: Path, experiment: Experiment) -> Predictor:
    """The predictor of what an experiment trained: on a GPU where there is one, unless it was to do without."""
    return load(model, "cpu" if experiment.train.device == "cpu" else "auto", "auto")


def load(model: Path, device: str, precision: str) -> Predictor:
    """The predictor of a model directory on the device asked for; auto takes a GPU where there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device is '{device}'. Known: auto, cpu, cuda")
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"--precision is '{precision}'. Known: auto, fp32, bf16")
    check_directory(model)  # before torch is imported
    import torch

    quiet()
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device is cuda, but torch finds no GPU here. Leave it at auto, or say cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Predictor.load(model, device, precision)


def reading(predictor: Predictor, changes: Sequence[str] = ()) -> DataConfig:
    """How the training files were read, with `data.key=value` changes; columns text and label where nobody knows."""
    stored = predictor.info.get("experiment") or {
        "task": predictor.name,
        "data": {"train": "unknown", "text": "text", "label": "label"},
    }
    for change in changes:
        if not change.startswith("data."):
            raise ConfigError(f"--set {change}: only how files are read can be set here, such as data.label=stars")
    data: DataConfig = experiments.change(stored, changes).data
    return data


def found(
    files: Sequence[str], predictor: Predictor, data: DataConfig, wanted: dict[str, str]
) -> Iterator[Placed | Bad]:
    """The rows of files, in order. DataError where none has any, or a file lacks what the model reads."""
    columns = predictor.processor.columns if WHOLE in wanted.values() else []
    needed = [column["name"] for column in columns if not column["missing"]]
    empty = True
    for source in resolve(files):
        if note := images.passed_over(source):
            say(note, sys.stderr)
        for item in clean(source, predictor.task, wanted, read_options(data), needed=needed):
            empty = False
            yield item
    if empty:
        raise DataError(f"{', '.join(files)}: holds no row")


def refuse_input_as_output(files: Sequence[str], output: Path | None, *more: Path) -> None:
    """ConfigError where the output, or what is written beside it, is one of the files that folders, globs and braces
    stand for."""
    if output is None or not files:
        return
    read = [file for source in resolve(files) for file in stored(source) if not is_remote(file)]
    inputs = {Path(local(file)).resolve() for file in read}
    if taken := [path for path in (output, *more) if path.resolve() in inputs]:
        raise ConfigError(f"--output {output}: {taken[0]} is one of the files that are read. Name another")


def refuse_folder(output: Path | None) -> None:
    if output and output.is_dir():
        raise ConfigError(f"--output {output} is a folder. Name a file in it, such as {output / 'answers.jsonl'}")


def rows_of(texts: Sequence[str], predictor: Predictor) -> list[dict[str, Any]]:
    """Texts given on the command, as the endpoint would take them."""
    task, processor = predictor.task, predictor.processor
    request = task.request(processor)
    if "text" not in request.model_fields:
        raise ConfigError(f"--text is for models that read a text; this one, of {predictor.name}, answers files")
    try:
        return [task.asked(dict(request.model_validate({"text": text})), processor) for text in texts]
    except Refused as refused:
        raise DataError(f"--text: {refused.reason}") from None
    except ValidationError as e:
        raise DataError(f"--text {e.errors(include_url=False)[0]['msg'].removeprefix('Value error, ')}") from None


def wished(asks: Sequence[str], predictor: Predictor) -> dict[str, Any]:
    """Fields of a request beside its text, such as `temperature=0.8`, as the endpoint would take them."""
    task, processor = predictor.task, predictor.processor
    request = task.request(processor)
    known = set(request.model_fields) - {"text"} if "text" in request.model_fields else set()
    for ask in asks:
        field, equals, _ = ask.partition("=")
        if not equals or field not in known:
            what = "what a request to this model has beside its text, as FIELD=VALUE"
            some = ", ".join(sorted(known)) or "nothing"
            raise ConfigError(f"--ask {ask}: wanted is {what}: {some}.{did_you_mean(field, known)}")
    fields, _ = parse("\n".join(ask.replace("=", ": ", 1) for ask in asks) or "{}", "--ask")
    try:
        row = task.asked(dict(request.model_validate({"text": "a text", **fields})), processor) if fields else {}
    except ValidationError as e:
        wrong = e.errors(include_url=False)[0]
        raise ConfigError(f"--ask {complaint(str(wrong['loc'][0]), wrong)}") from None
    return {field: row[field] for field in fields if field in row}


@contextmanager
def writing(output: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears when it is whole."""
    if output is None:
        yield sys.stdout
        return
    part = output.with_name(f"{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = open(part, "w", encoding="utf-8")
    except OSError as e:
        raise ResourceError(f"{output}: cannot be written: {e.strerror or e}") from None
    try:
        with file:
            yield file
        os.replace(part, output)
    except OSError as e:
        raise ResourceError(f"{output}: cannot be written: {e.strerror or e}") from None
    finally:
        part.unlink(missing_ok=True)


def relative(path: Path) -> Path:
    """As seen from here, where it is below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def line(answer: Answer) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise CheckpointError(
            f"{path}: cannot be read. Delete it, and the same command tests the model again"
        ) from None
    return value


def write_json(path: Path, value: Any) -> None:
    with writing(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)


def quiet() -> None:
    """Without transformers' bars for the milliseconds that reading and writing weights takes: the display is ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def say(text: str, file: IO[str] | None = None) -> None:
    print(text, flush=True, file=file)
