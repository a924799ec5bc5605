"""Experiment: the one configuration. Read from YAML with line numbers, changed by `key=value`, frozen, typed.

Every section refuses unknown keys; all mistakes of a file are reported at once (`ConfigError`). The `model` section is
free here: its fields belong to the architecture, and `bigmodel.models.problems` checks them.
"""

from __future__ import annotations

import copy
import datetime
import math
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bigmodel.complaints import KINDS, no_choice, wish
from bigmodel.errors import ConfigError, did_you_mean, missing
from bigmodel.yaml_lines import Lines, parse, value_of

Ratio = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _is_local(path: str) -> str:
    if "://" in path:
        raise ValueError(
            f"{path} is no local path. What a run writes lies in a folder, on a cluster in one that all nodes share; "
            "checkpoints alone may lie on object storage, with the class Checkpoints (see the README)"
        )
    return path


def _are_values(given: Any) -> Any:
    if isinstance(given, dict):
        raise ValueError("fields are named with their sections, such as optim.lr: log:1e-4..1e-1")
    if not isinstance(given, (str, list)):
        raise PydanticCustomError("values", "a range such as log:1e-4..1e-1, or a list of values")
    return given


Folder = Annotated[str, AfterValidator(_is_local)]
Values = Annotated[str | list[Any], PlainValidator(_are_values)]
Problem = tuple[tuple[str, ...], str]  # (path of the key, what is wrong)


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # "5" is not 5, and true is not 1
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class SplitConfig(Section):
    valid: Ratio = 0.1
    """Fraction of all rows held out for validation, where `data.valid` names no file."""
    test: Ratio = 0.1
    """Fraction of all rows held out for the test, where `data.test` names no file. A row's place follows from the md5
    of its cleaned content: 0.2 takes the rows whose md5 is divisible by 5, so duplicates never straddle."""
    by: Literal["content", "position"] = "content"
    """position holds out the last rows instead, validation before the test: fractions of the characters."""

    @model_validator(mode="after")
    def leaves_training_rows(self) -> SplitConfig:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} and test {self.test} leave nothing to train on")
        return self


class AugmentConfig(Section):
    token_dropout: Ratio = 0.0
    """Each token of a training text is left out with this probability, anew in every epoch."""
    swap: Ratio = 0.0
    """Each token changes places with its right neighbour with this probability."""
    mask: Ratio = 0.0
    """Each token is replaced by the unknown token with this probability."""
    crop: Ratio = 0.0
    """A training image is shifted by up to this part of its height and width, anew in every epoch."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """It is mirrored, left to right, with this probability. Not for digits or letters, whose class it changes."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """It is turned by up to so many degrees either way."""
    colour: Ratio = 0.0
    """Its brightness, contrast and balance of colours change by up to this part."""
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A rectangle of it becomes noise with this probability."""
    mixup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Another image shines through, and its label counts as much, with this probability."""
    cutmix: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A rectangle of it is another image's, and so is that part of the label, with this probability."""

    @model_validator(mode="after")
    def mixes_in_one_way(self) -> AugmentConfig:
        if self.mixup + self.cutmix > 1:
            raise ValueError(f"an image is mixed in one way: mixup {self.mixup} and cutmix {self.cutmix} exceed 1")
        return self


class ImagesConfig(Section):
    size: PositiveInt | list[PositiveInt] | None = None
    """Pixels of a side, or [height, width]: images are resized to it. Else the median size of the training images, at
    most 224; a pretrained model has its own."""

    @field_validator("size")
    @classmethod
    def has_two_sides(cls, size: int | list[int] | None) -> int | list[int] | None:
        if isinstance(size, list) and len(size) != 2:
            raise ValueError(f"{size} has {len(size)} numbers: give one for squares, or [height, width]")
        return size


class TokenizerConfig(Section):
    type: Literal["auto", "char", "word", "bpe", "wordpiece", "byte"] = "auto"
    """auto looks at the training texts: characters where most letters are Chinese, Japanese or Korean, else words."""
    vocab_size: PositiveInt = 30_000
    """Most entries of the vocabulary."""
    min_frequency: PositiveInt = 2
    """Rarer tokens become the unknown token."""
    max_texts: PositiveInt = 1_000_000
    """Training texts it is learnt from; of more of them every second, or third, and so on."""
    lowercase: bool | None = None
    """Fold capitals. Not given, a classifier does, as the unknown token otherwise eats rare spellings; what is to be
    written keeps them."""
    joint: bool = True
    """Translation: one vocabulary for both languages, whose vectors are shared; false learns one for each."""


class TableConfig(Section):
    types: dict[str, Literal["number", "category", "boolean", "date", "ignore"]] = {}
    """Column -> `number`, `category`, `boolean`, `date` or `ignore`, where what is inferred from the training rows is
    not what is meant. Free text is ignored, and that is said."""
    dates: dict[str, str] = {}
    """Column -> how its dates are written, such as `%d/%m/%Y`. Not given, they are ISO, or as all training rows can be
    read in one way alone: a day above 12 tells it from the month."""
    missing: list[str] = ["", "?", "NA", "N/A", "null", "NULL", "None"]
    """Words that stand for a missing value, beside NaN, however it is spelt."""
    max_categories: Annotated[int, Field(ge=1, le=250)] = 100
    """Most categories of a column, the most frequent ones; the others count as one that training never saw."""
    bins: PositiveInt = 48
    """Bins of a numeric column, at most, for its piecewise-linear encoding."""
    binning: Literal["tree", "quantile"] = "tree"
    """Where the bin edges lie: at the splits of a decision tree that tells the label from this number alone, or at
    quantiles."""

    @model_validator(mode="after")
    def dates_are_dates(self) -> TableConfig:
        day = datetime.datetime(2001, 2, 3)
        for column, form in self.dates.items():
            try:
                told = datetime.datetime.strptime(day.strftime(form), form)
            except (ValueError, re.error):  # the latter where a part stands in it twice
                told = None
            if told != day:
                raise ValueError(f"dates: {form!r} of '{column}' does not tell day, month and year, as '%d/%m/%Y' does")
            if self.types.get(column, "date") != "date":
                raise ValueError(f"dates has '{column}', of which types says that it is: {self.types[column]}")
        return self


class DataConfig(Section):
    train: str | list[str]
    """Training rows: a file, a list, a glob, a folder, s3://, hf://. CSV, TSV, JSON Lines, Parquet, text; also .gz."""
    valid: str | list[str] | None = None
    """Validation rows; else `split.valid` of the training rows."""
    test: str | list[str] | None = None
    """Test rows; else `split.test` of the training rows."""
    text: str | None = None
    """The column that holds the text."""
    image: str | None = None
    """The column that holds an image: a path, or the bytes of its file. Folders of images need none."""
    source: str | None = None
    """The column that holds the text to translate."""
    target: str | None = None
    """The column that holds its translation."""
    label: str | None = None
    """The column that holds the label; of tabular-regression, the number."""
    relabel: dict[str, str] = {}
    """Label as a file has it, be it a word, a number or a truth -> label: `{"<=50K.": "<=50K"}`, `{0: neg, 1: pos}`."""
    split: SplitConfig = SplitConfig()
    """How the training rows are shared out where `valid` or `test` names no file."""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "text", "images"] = "auto"
    """auto goes by the extension, then by the content."""
    encoding: str = "auto"
    """auto finds UTF-8, UTF-16 and GB18030; latin-1 and the like must be named."""
    delimiter: str = "auto"
    """What separates the fields of a CSV or text row."""
    columns: list[str] | None = None
    """Names of the columns, for files without a header."""
    separator: str | None = None
    """text-generation: the line that ends a document in a raw text file; a file is one document otherwise."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Fraction of refused rows above which the run stops."""
    max_length: PositiveInt = 256
    """Tokens read of each text; what is longer is cut and counted."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    images: ImagesConfig = ImagesConfig()
    augment: AugmentConfig = AugmentConfig()
    table: TableConfig = TableConfig()
    cache: Folder | None = None
    """Folder of prepared data; `.prepared` beside the output folder if not given."""
    distributed: Literal["auto", "always", "never"] = "auto"
    """Prepare through Ray Data: auto does so on a cluster for sources above 256 MB."""


class OptimConfig(Section):
    type: Literal["adam", "adamw", "gd"] = "adam"
    """adam and adamw differ in weight decay: added to the gradient, or decoupled from it."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate, reached after `warmup` optimiser steps."""
    betas: Annotated[tuple[Ratio, Ratio], Field(strict=False)] = (0.9, 0.999)  # YAML has lists alone
    """Decay rates of Adam's first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to Adam's denominator, against division by zero."""
    bias_correction: bool = True
    """false takes m / (sqrt(v) + eps) as it is."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """On matrices, kernels and embeddings; biases and norms have none."""
    momentum: Ratio = 0.0
    """Gradient descent only."""
    nesterov: bool = False
    """Gradient descent only."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, linear decay to 0, or cosine decay to 0."""
    warmup: Count = 50
    """Optimiser steps of linear warm-up, not micro-batches. A run of fewer than ten times as many warms up for a tenth
    of its steps."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Global norm that gradients are clipped to; 0 turns clipping off."""

    @model_validator(mode="after")
    def momentum_goes_with_gd(self) -> OptimConfig:
        if self.type != "gd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov are of gradient descent (type: gd); {self.type} has betas")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0, such as 0.9")
        return self


class TrainConfig(Section):
    epochs: PositiveInt = 5
    """Passes over the training rows."""
    batch_size: PositiveInt = 64
    """Samples of one optimiser step, over all workers and micro-batches: the number of workers never changes it."""
    batch_tokens: Count = 0
    """Tokens of one optimiser step, roughly, padding included, in place of batch_size; 0 counts samples."""
    accumulate: PositiveInt = 1
    """Micro-batches a worker cuts its part of the batch into (gradient accumulation), to save memory, and on a CPU
    often time, where batches are large; the step stays the same."""
    workers: int | str = 0
    """0 trains in this process without Ray; N trains on N workers of Ray Train; 1..4 on as many of them as there is
    room for, more when nodes join and fewer when some are lost."""
    exact: bool = False
    """The same bits for any number of workers, on processors of one kind: each batch is cut into `shards`, whose
    gradients are summed in a fixed order. auto is then fp32, threads are 1 if not given, and accumulate is not used."""
    shards: Annotated[int, Field(ge=1, le=1024)] = 4
    """Shards that each batch is cut into under `exact`, and the most workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto gives each worker a GPU where there are enough of them."""
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    """Threads of each worker; 0 shares the machine's cores among the workers. Augmentation takes one more where a core
    is left."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto times both on the first batch and keeps bf16 where it is a tenth faster; a rerun repeats the choice."""
    seed: Seed = 0
    """Of the initial weights, the order of the samples, augmentation and dropout."""
    validate_every: Count = 0
    """Optimiser steps between validations; 0 is once an epoch."""
    checkpoint_every: Count = 0
    """Optimiser steps between checkpoints, beside the one after each validation; 0 is one every 30 seconds."""
    keep: PositiveInt = 2
    """Checkpoints kept, the newest ones; the best model is kept besides."""
    keep_every: Count = 0
    """Of every so many optimiser steps the first checkpoint is kept besides; 0 keeps none."""
    early_stopping: Count = 0
    """Validations without improvement after which training ends; 0 never ends early."""
    label_smoothing: Ratio = 0.0
    """Part of the target's probability that is spread evenly over all labels."""
    average: Ratio = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and kept; 0 is none."""
    bucket: PositiveInt = 50
    """Batches in one window that is sorted by length (bucketing); 1 leaves the order purely random."""
    retries: Count = 3
    """How often the workers begin anew after a failure, from the last checkpoint."""
    heal: Count = 3
    """How many batches whose loss or gradient is NaN or infinite may be skipped: the run goes back to the last
    checkpoint, names the rows, and goes on without that batch. 0 ends the run at the first."""
    heal_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate after each skipped batch."""
    spike: Annotated[float, Field(ge=0)] = 0.0
    """A loss above this many times the median of the last 50 steps is treated like NaN; 0 turns this off."""
    timeout: PositiveInt = 300
    """Seconds a worker may be silent before it is replaced, and a collective operation of several may take."""

    @field_validator("workers", mode="plain")
    @classmethod
    def is_a_number_or_a_range(cls, workers: Any) -> int | str:
        if type(workers) is int and workers < 0:
            raise PydanticCustomError("greater_than_equal", "at least 0", {"ge": 0})
        if type(workers) is int or (isinstance(workers, str) and _in_order(workers)):
            return workers
        raise PydanticCustomError("workers", "a whole number, or a range such as 1..4")

    @model_validator(mode="after")
    def each_worker_has_a_shard(self) -> TrainConfig:
        if self.exact and self.most_workers > self.shards:
            raise ValueError(f"exact cuts a batch into {self.shards} shards, too few for workers: {self.workers}")
        return self

    @property
    def least_workers(self) -> int:
        return int(str(self.workers).partition("..")[0])

    @property
    def most_workers(self) -> int:
        return int(str(self.workers).rpartition("..")[2])

    def threads_of(self, available: int) -> int:
        """Threads of a worker that has so many cores."""
        return self.threads or (1 if self.exact else max(1, available))


def _in_order(workers: str) -> bool:
    found = re.fullmatch(r"([1-9]\d*)\.\.([1-9]\d*)", workers)
    return found is not None and int(found[1]) <= int(found[2])


class TuneConfig(Section):
    space: dict[str, Values] = {}
    """Field -> values to try: `log:1e-4..1e-1`, `uniform:0..0.5`, `int:1..4`, `choice:64,128` or a list. `optim.beta1`
    and `optim.beta2` are the parts of `optim.betas`. Added to learning rate and betas; `none` takes one of them out."""
    trials: PositiveInt = 16
    """Trials, the experiment as it is the first of them."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """How the next values are chosen: tree-structured Parzen estimators, at random, or all of a grid."""
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    """asha stops the worse trials early; pbt lets bad ones go on from the weights of good ones, at other rates."""
    grace: PositiveInt = 1
    """Validations before a trial may be stopped, and between two exploits of pbt."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """ASHA's reduction factor: one trial in this many goes on at each rung (`grace`, `grace * reduction`, ...
    validations)."""
    max_concurrent: Count = 0
    """Trials at a time; 0 is as many as there are cores, or GPUs, for."""
    in_order: bool = False
    """One trial at a time: a search that was interrupted ends at the same winner as one that was not."""
    num_cpus: PositiveFloat = 1.0
    """Cores of a trial, which computes with as many threads; 0.5 lets two share one."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a trial; 0.5 lets two share one. 0 is one where there are any, unless train.device is cpu."""
    minutes: Annotated[float, Field(ge=0)] = 0.0
    """No trial begins after this time, and those that run are stopped; 0 is no limit."""
    seed: Seed = 0
    """Of the choice of values. The trials themselves have train.seed."""
    candidates: Count = 2
    """How many of the best are trained again with further seeds, beside the default; 0 leaves the verdict out."""
    repeats: Annotated[int, Field(ge=2, le=100)] = 3
    """Further seeds of each candidate and of the default."""
    proxy: dict[str, PositiveInt] = {}
    """`{hidden_size: 64}` searches on an encoder or decoder of this width; the winner is carried to the width of
    `model` by maximal update parametrisation, and trained there."""

    @property
    def cores(self) -> int:
        """Whole ones of a trial, as many as it has threads if nothing else is said."""
        return max(1, int(self.num_cpus))


class DecodeConfig(Section):
    beams: PositiveInt = 1
    """Beam width; 1 is greedy decoding, which validation during training always uses."""
    length_penalty: float = 1.0
    """Beams are compared by log-probability / length ** length_penalty; 0 favours short ones."""


class MupConfig(Section):
    hidden_size: PositiveInt | None = None
    """The width of the encoder or decoder at which learning rate and initialisation were tuned: the model, however
    wide, is scaled as if it were tuned there. none is the standard parametrisation."""


DEFAULT_TYPES = {
    "text-classification": "textcnn",
    "image-classification": "cnn",
    "translation": "transformer",
    "text-generation": "transformer",
    "tabular-classification": "tabular_mlp",
    "tabular-regression": "tabular_mlp",
}
"""The model's type where an experiment names none, by task."""


class Experiment(Section):
    task: Literal[
        "text-classification",
        "image-classification",
        "translation",
        "text-generation",
        "tabular-classification",
        "tabular-regression",
    ]
    """What the model is for: text-classification and image-classification, a text or an image in and one label of a
    fixed set out; translation, a text of one language in, of another out; text-generation, a text in, what comes next
    out; tabular-classification, a row of a table in and one label out; tabular-regression, a row in and a number
    out."""
    data: DataConfig
    """Where the rows are, which columns are read, and how."""
    model: dict[str, Any] = Field({}, validate_default=True)
    """`type` (lstm, gru, textcnn, transformer, or a model type of transformers) or `pretrained` (directory or hub
    name), and the fields of its config. If it names neither, a textcnn for the classification of texts, a cnn for that
    of images, a tabular_mlp for tables, a transformer for translation and text-generation."""
    init: Literal["xavier", "kaiming", "orthogonal", "normal"] = "xavier"
    """Scheme of the weights that do not come from a checkpoint."""
    mup: MupConfig = MupConfig()
    """Maximal update parametrisation: what is tuned on a narrow encoder or decoder holds for a wide one."""
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()
    """How the trained model translates."""
    tune: TuneConfig = TuneConfig()
    """What `bigmodel tune` searches, and how; training does not read it."""
    output: Folder = "runs/model"
    """Folder of the run, on a local path: events, checkpoints, model, report."""

    @field_validator("model")
    @classmethod
    def _is_of_a_type(cls, model: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return of_a_type(model, info.data.get("task", ""))

    def to_yaml(self, without: set[str] | None = None) -> str:
        return yaml.safe_dump(self.model_dump(mode="json", exclude=without), sort_keys=False, allow_unicode=True)

    @classmethod
    def stored(cls, path: Path) -> Experiment:
        """What `to_yaml` wrote. ValueError or YAMLError if it has been damaged since."""
        return cls.model_validate(yaml.safe_load(path.read_text("utf-8")))

    @property
    def output_path(self) -> Path:
        """Absolute. A Ray job runs in a folder that is thrown away: there a relative path starts at BIGMODEL_HOME."""
        home = os.environ.get("BIGMODEL_HOME") or (Path.home() / "bigmodel" if in_ray_job() else Path.cwd())
        return (Path(home) / self.output).absolute()

    @property
    def cache_path(self) -> Path:
        return Path(self.data.cache).absolute() if self.data.cache else self.output_path.parent / ".prepared"


def of_a_type(model: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The model section; one that names neither type nor checkpoint is of the task's default type."""
    named = {"type", "pretrained"} & model.keys() or task not in DEFAULT_TYPES
    return {**model} if named else {"type": DEFAULT_TYPES[task], **model}


def in_ray_job() -> bool:
    return "runtime_resources" in Path.cwd().parts


Check = Callable[[dict[str, Any]], list[Problem]]


def load(path: str | Path, overrides: Sequence[str] = (), check: Check | None = None) -> Experiment:
    """Read an experiment file; `overrides` are `section.key=value`. `check` looks at the raw tree for more problems."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: {missing(str(path))}.{_neighbours(Path(path))}") from None
    except UnicodeDecodeError as e:
        found = "UTF-16" if e.object.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "another encoding"
        raise ConfigError(f"{path}: cannot be read: it is {found}. Save it as UTF-8") from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from None
    tree, lines = parse(text, str(path))
    for override in overrides:
        _override(tree, lines, override)
    return validate(tree, lines, str(path), check)


def change(dumped: dict[str, Any], overrides: Sequence[str]) -> Experiment:
    """A dumped experiment, as in bigmodel.json, with `section.key=value` changes."""
    tree, lines = copy.deepcopy(dumped), Lines()
    for override in overrides:
        _override(tree, lines, override)
    return validate(tree, lines, "bigmodel.json", None)


def validate(tree: dict[str, Any], lines: Lines, path: str, check: Check | None) -> Experiment:
    problems: list[Problem] = []
    experiment = None
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as e:
        problems = _explain(e, tree)
    if check is not None:
        known = {at for at, _ in problems}
        problems += [problem for problem in check(tree) if problem[0] not in known]
    if problems:
        located = sorted(((_line(at, lines), message) for at, message in problems), key=lambda found: _rank(found[0]))
        raise ConfigError("\n".join(f"{_where(line, path)}: {message}" for line, message in located))
    assert experiment is not None
    return experiment


def _override(tree: dict[str, Any], lines: Lines, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: '{override}' is not of the form section.key=value, such as optim.lr=2e-3")
    free = next((name for name in FREE if key.startswith(f"{name}.")), "")
    parts = (*free.split("."), key[len(free) + 1 :]) if free else tuple(key.split("."))
    try:
        parsed = value_of(value)
    except yaml.YAMLError:
        raise ConfigError(f"command line: {key}: '{value}' is not a YAML value") from None
    section = tree
    for part in parts[:-1]:
        child = section.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"command line: {key}: '{part}' is not a section")
        section = child
    section[parts[-1]] = parsed
    for replaced in [at for at in lines if at[: len(parts)] == parts]:
        del lines[replaced]
    for depth in range(1, len(parts) + 1):
        lines.setdefault(parts[:depth], "command line")


FREE = ("tune.space", "data.relabel", "data.table.types", "data.table.dates")
"""Sections whose keys are any words, with dots or without."""


def _explain(error: ValidationError, tree: dict[str, Any]) -> list[Problem]:
    """Every mistake with its key; what several alternatives say of one value is one mistake."""
    problems: list[Problem] = []
    wanted: dict[tuple[str, ...], list[str]] = {}
    for found in error.errors(include_url=False):
        at = _key(found, tree)
        if found["type"] in ("extra_forbidden", "invalid_key"):
            problems.append((at, _unknown(at)))
        elif found["type"] == "missing" and at == found["loc"]:
            problems.append((at, _missing(at)))
        elif found["type"] == "literal_error":
            problems.append((at, no_choice(".".join(at), found, _shown(tree, at))))
        elif found["type"] == "value_error":
            problems.append((at, f"{'.'.join(at)}: {found['msg'].removeprefix('Value error, ')}"))
        else:
            wanted.setdefault(at, []).append(wish(found))
    for at, words in wanted.items():
        alternatives = " or ".join(dict.fromkeys(words))
        shown = _shown(tree, at)
        blank = ". Put a blank after the colon" if KINDS["dict"] in words and re.match(r"'\w+:\S", shown) else ""
        problems.append((at, f"{'.'.join(at)} is {shown}, but must be {alternatives}{blank}"))
    return problems


def _key(found: Any, tree: Any) -> tuple[str, ...]:
    """The path of the key in the file: without pydantic's alternatives of a type, or places in a list."""
    at: list[str] = []
    for part in found["loc"]:
        if not isinstance(tree, dict) or (part not in tree and found["type"] != "missing"):
            break
        at.append(str(part))
        tree = tree.get(part)
    return tuple(at)


def _unknown(at: tuple[str, ...]) -> str:
    fields = _fields(at[:-1])
    section = ".".join(at[:-1]) or "the experiment"
    hint = did_you_mean(at[-1], fields)
    if at[-1].partition(":")[0] in fields:
        hint = " Put a blank after the colon."
    return f"{section} has no field '{at[-1]}'.{hint} Fields: {', '.join(sorted(fields))}"


def _missing(at: tuple[str, ...]) -> str:
    described = _section(at[:-1]).model_fields[at[-1]].description
    return f"{'.'.join(at)} is missing" + (f": {' '.join(described.split())}" if described else "")


def _shown(tree: Any, at: tuple[str, ...]) -> str:
    for part in at:
        tree = tree[part]
    return "empty" if tree is None else f"{tree!r:.80}"


def _section(at: tuple[str, ...]) -> type[Section]:
    section: Any = Experiment
    for part in at:
        section = section.model_fields[part].annotation
    assert isinstance(section, type) and issubclass(section, Section)
    return section


def _fields(at: tuple[str, ...]) -> list[str]:
    return list(_section(at).model_fields)


def _line(at: tuple[str, ...], lines: Lines) -> int | str | None:
    """Where the key stands, or else the section it would stand in."""
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at)


def _rank(line: int | str | None) -> float:
    """The file as a whole, then line by line, then the command line."""
    return line if isinstance(line, int) else 0 if line is None else math.inf


def _where(line: int | str | None, path: str) -> str:
    return path if line is None else line if isinstance(line, str) else f"{path}:{line}"


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist either."
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml") and p.exists())
    return (
        f" In {folder.resolve()} there is: {', '.join(found[:10])}"
        if found
        else f" {folder.resolve()} holds no .yaml file."
    )


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """Leaves in which two dumped experiments differ: `optim.lr: 0.001 -> 0.002`."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys(), key=str):
        a, b, here = old.get(key), new.get(key), f"{at}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{here}.")
        elif a != b:
            lines.append(f"{here}: {a!r} -> {b!r}")
    return lines
