"""Every mistake of an experiment file at once, each with its line: what is written, and what the person reads."""

import pytest

from bigmodel import pipeline
from bigmodel.errors import ConfigError

HEAD = """\
task: text-classification
data:
  train: reviews.csv
  text: review
  label: stars
"""
# what follows HEAD, from line 6 on -> the lines of the message; "..." stands for any words
FILES = {
    "model:\n  hiden_size: 3\n  type: lstm": [
        "7: model has no field 'hiden_size'. Did you mean 'hidden_size'? Fields of lstm: bidirectional, ..."
    ],
    "model: {type: lstm, hidden_size: '100'}": ["6: model.hidden_size is '100', but must be a whole number"],
    "model: {type: lstm, hidden_size: -1}": ["6: model.hidden_size is -1, but must be at least 1"],
    "model: {type: lstm, dropout: 1.5}": ["6: model.dropout is 1.5, but a probability of dropping is at least 0 ..."],
    "model: {type: transformer, hidden_size: 100, num_attention_heads: 3}": [
        "6: model.hidden_size 100 is not divisible by num_attention_heads 3. It is by 1, 2, 4, 5, ..."
    ],
    "model: {type: lsmt}": ["6: model has no type 'lsmt'. Did you mean 'lstm'? Types: lstm, gru, textcnn, ..."],
    "model: {type: lstm, pretrained: here}": ["6: model needs either type or pretrained; found both. ..."],
    "model: {pretrained: ./nowhere}": ["6: model.pretrained: there is no directory './nowhere'"],
    "model: {pretrained: .}": ["6: model.pretrained: . holds no weights (*.safetensors; other formats are not read)"],
    "model: {num_filter: 3}": [
        "6: model has no field 'num_filter'. Did you mean 'num_filters'? Fields of textcnn: ..."
    ],
    "model: lstm": ["6: model is 'lstm', but must be a section, with keys and values under it"],
    "model:": ["6: model is empty, but must be a section, with keys and values under it"],
    "model: {type: lstm, 3: 4}": ["6: model has no field '3'. Fields of lstm: ..."],
    "init: xaver": ["6: init is 'xaver'. Did you mean 'xavier'? Known: xavier, kaiming, orthogonal, normal"],
    "optim: {lr: '1e-3'}": ["6: optim.lr is '1e-3', but must be a number"],
    "optim: {lr: 0}": ["6: optim.lr is 0, but must be above 0"],
    "optim: {lr: .inf}": ["6: optim.lr is inf, but must be a finite number"],
    "optim: {betas: 0.9}": ["6: optim.betas is 0.9, but must be a list of two numbers"],
    "optim: {betas: [0.9]}": ["6: optim.betas is [0.9], but must be a list of two numbers"],
    "optim: {betas: [0.9, x]}": ["6: optim.betas is [0.9, 'x'], but must be a list of two numbers"],
    "optim: {betas: [0.9, 1]}": ["6: optim.betas is [0.9, 1], but must be numbers below 1"],
    "optim: {type: sgd}": ["6: optim.type is 'sgd'. Did you mean 'gd'? Known: adam, adamw, gd"],
    "optim: 3": ["6: optim is 3, but must be a section, with keys and values under it"],
    "train: {epochs: 2.5}": ["6: train.epochs is 2.5, but must be a whole number"],
    "train: {epochs: true}": ["6: train.epochs is True, but must be a whole number"],
    "train: {epochs: '2'}": ["6: train.epochs is '2', but must be a whole number"],
    "train: {workers: -1}": ["6: train.workers is -1, but must be at least 0"],
    "train: {workers: 4..1}": ["6: train.workers is '4..1', but must be a whole number, or a range such as 1..4"],
    "train: {workers: 0..4}": ["6: train.workers is '0..4', but must be a whole number, or a range such as 1..4"],
    "train: {workers: 1.5}": ["6: train.workers is 1.5, but must be a whole number, or a range such as 1..4"],
    "train: {workers: 1..5, exact: true}": ["6: train: exact cuts a batch into 4 shards, too few for workers: 1..5"],
    "train: {batchsize: 3}": ["6: train has no field 'batchsize'. Did you mean 'batch_size'? Fields: accumulate, ..."],
    "train: {seed: 99999999999999999999}": ["6: train.seed is 99999999999999999999, but must be below ..."],
    "optim: {bias_correction: 1}": ["6: optim.bias_correction is 1, but must be true or false"],
    "optim: {bias_correction: no}": ["6: optim.bias_correction is 'no', but must be true or false"],
    "trian: {}": ["6: the experiment has no field 'trian'. Did you mean 'train'? Fields: data, decode, ..."],
    "output: 3": ["6: output is 3, but must be a word"],
    "output: s3://bucket/run": ["6: output: s3://bucket/run is no local path. What a run writes ... Checkpoints ..."],
    "optim: {lr: 1}\noptim: {lr: 2}": ["7: 'optim' stands here again (first on line 6)"],
    "optim:\n  lr: 1\n  lr: 2": ["8: 'optim.lr' stands here again (first on line 7)"],
    "optim:\n\tlr: 1": ["7:1: this is not YAML: found character '\\t' that cannot start any token. Indent with spaces"],
    "optim: [1, 2": ["6:13: this is not YAML: expected ',' or ']', but got '<stream end>'"],
    "decode: {beams: 2}": ["6: decode.beams has no effect: text-classification does not read it, but translation"],
    "train: {label_smoothing: 0.1}\ndecode: {beams: 1}\noptim: {x: 1}": ["8: optim has no field 'x'. Fields: ..."],
    "optim: lr: 1": ["6:10: this is not YAML: mapping values are not allowed here. Keys of a section stand on ..."],
    "output: *.csv": ["6:10: this is not YAML: ... wants quotation marks: '*.csv'"],
    "output: *csv": ["6:9: this is not YAML: ... wants quotation marks: '*.csv'"],
    "output: @x": ["6:9: this is not YAML: ... What begins so wants quotation marks"],
    "output: 'x": ["6:9: this is not YAML: ... The quotation mark here has no end"],
    "optim:\n  lr: 1\n eps: 1": ["8:2: this is not YAML: ... Indent the keys of a section alike"],
    "optim:\n  lr: 1\n    eps: 1": ["8:8: this is not YAML: ... Indent the keys of a section alike"],
    "optim:\n  lr:1\n  eps: 1": ["8:6: this is not YAML: ... A key ends with a colon and a blank"],
    "optim:\n  eps: 1\n  lr:1": ["8:3: this is not YAML: ... A key ends with a colon and a blank"],
    "optim:\n  lr:1": ["6: optim is 'lr:1', but must be a section, ... Put a blank after the colon"],
    "optim: {lr:1}": ["6: optim has no field 'lr:1'. Put a blank after the colon. Fields: ..."],
    "tune:\n  space:\n    optim:\n      lr: log:1e-4..1e-1": [
        "8: tune.space.optim: fields are named with their sections, such as optim.lr: log:1e-4..1e-1"
    ],
    "tune: {space: {optim.lr: 5}}": ["6: tune.space.optim.lr is 5, but must be a range such as log:1e-4..1e-1, ..."],
    "optim: \x00": ["6: this is not YAML: special characters are not allowed (U+0000)"],
    "optim: !!python/object:os.system ls": ["6:8: this is not YAML: could not determine a constructor for the tag ..."],
    "x: &a [*a]": ["6: the experiment has no field 'x'. Fields: ..."],
    "optim: &o {lr: 1}\ntrain: *o": ["6: train has no field 'lr'. Fields: ..."],
    "model:\n  type: lstm\n  hiden_size: 3\n  dropout: 2\noptim: {lr: abc, betas: [0.9]}\ntrain: {epochs: 0, x: 1}": [
        "8: model has no field 'hiden_size'. Did you mean 'hidden_size'? ...",
        "9: model.dropout is 2, but a probability of dropping is at least 0 and below 1",
        "10: optim.lr is 'abc', but must be a number",
        "10: optim.betas is [0.9], but must be a list of two numbers",
        "11: train has no field 'x'. Fields: ...",
        "11: train.epochs is 0, but must be above 0",
    ],
}
WHOLE = {  # the file as a whole -> the lines of the message, without a line number where there is none to give
    "": [" task is missing: ...", " data is missing: ..."],
    "# nothing but a comment\n": [" task is missing: ...", " data is missing: ..."],
    "task: text-clasification\ndata: {train: a.csv, text: t, label: l}": [
        "1: task is 'text-clasification'. Did you mean 'text-classification'? Known: ..."
    ],
    "task: [text-classification]\ndata: {train: a.csv, text: t, label: l}": [
        "1: task is ['text-classification']. Did you mean 'text-classification'? Known: ..."
    ],
    "task:\ndata: {train: a.csv, text: t, label: l}": ["1: task is empty. Known: ..."],
    "task: text-classification\ndata: [1]": ["2: data is [1], but must be a section, with keys and values under it"],
    "task: text-classification\ndata: {train: a.csv, text: t, label: t}": [
        "2: data.text and data.label are the same column, 't'. Name one for each"
    ],
    "task: text-classification\ndata:\n  train: a.csv\n  text: t\n  label: l\n  image: i\n  augment: {crop: 0.1}": [
        "6: data.image has no effect: text-classification does not read it, but image-classification",
        "7: data.augment.crop has no effect: text-classification does not read it, but image-classification",
    ],
    "task: tabular-regression\ndata: {train: a.csv, label: l, table: {bins: 3}, text: t}": [
        "2: data.text has no effect: tabular-regression does not read it, but text-classification and text-generation"
    ],
    "task: text-classification\ndata: {text: t, label: l}": ["2: data.train is missing: Training rows: ..."],
    "task: text-classification\ndata: {train: 3, text: t, label: l}": [
        "2: data.train is 3, but must be a word or a list of words"
    ],
    "task: text-classification\ndata: {train: [a, 3], text: t, label: l}": [
        "2: data.train is ['a', 3], but must be a word or a list of words"
    ],
    "task: text-classification\ndata: {train: a.csv, text: t}": [
        "2: text-classification needs the columns ... data.label"
    ],
    "task: text-classification\ndata: {train: a, text: t, label: l, split: {valid: 0.9}}": [
        "2: data.split: valid 0.9 and test 0.1 leave nothing to train on"
    ],
    "task: text-classification\ndata:\n  train: a\n  text: t\n  label: l\n  augment:\n    swop: 0.1": [
        "7: data.augment has no field 'swop'. Did you mean 'swap'? Fields: colour, crop, ... token_dropout"
    ],
    **{
        f"task: {task}\ndata: {{train: a.csv, label: y}}\nmodel:\n  hidden_size: 8\n  pretrained: {source}": [
            f"5: model.pretrained is '{source}', but {task} trains from scratch: ... tabular_mlp, ft_transformer"
        ]
        for task in ("tabular-classification", "tabular-regression")
        for source in ("./nowhere", "bert-base-uncased")
    },
    "- task\n- data": [" an experiment is a mapping of task, data, model ...; found list"],
    "words": [" an experiment is a mapping of task, data, model ...; found str"],
    "a: " + "[" * 3000: [" this YAML is nested too deeply"],
}
OVERRIDES = {
    "model.hiden_size=3": ["model has no field 'hiden_size'. Did you mean 'hidden_size'? Fields of lstm: ..."],
    "model.hidden_size=wide": ["model.hidden_size is 'wide', but must be a whole number"],
    "model={type: gru, hiden_size: 3}": ["model has no field 'hiden_size'. ... Fields of gru: ..."],
    "optim.lr=abc": ["optim.lr is 'abc', but must be a number"],
    "optim.lr=1,5": ["optim.lr is '1,5', but must be a number"],
    "optim.lr=": ["optim.lr is empty, but must be a number"],
    "optim.lr=[": ["optim.lr: '[' is not a YAML value"],
    "optim.lr": ["'optim.lr' is not of the form section.key=value, such as optim.lr=2e-3"],
    "=3": ["'=3' is not of the form section.key=value, ..."],
    "optim.lr.x=1": ["optim.lr.x: 'lr' is not a section"],
    "data.text.x=1": ["data.text.x: 'text' is not a section"],
    "optim..lr=1": ["optim has no field ''. Fields: ..."],
    "train.threads=10000000000000": ["train.threads is 10000000000000, but must be at most 4096"],
    "optim.betas=[0.9]": ["optim.betas is [0.9], but must be a list of two numbers"],
    "optim={lr: abc}": ["optim.lr is 'abc', but must be a number"],
    "nosuch.key=1": ["the experiment has no field 'nosuch'. Fields: ..."],
    "data.cache=s3://bucket/cache": ["data.cache: s3://bucket/cache is no local path. ..."],
    "data.images.size=big": ["data.images.size is 'big', but must be a whole number or a list of two numbers"],
    "data.images.size=[big, 3]": ["data.images.size is ['big', 3], but must be a whole number or a list of two ..."],
    "tune.space.optim.lr=": ["tune.space.optim.lr is empty, but must be a range such as log:1e-4..1e-1, ..."],
    "tune.space={optim.lr: 5}": ["tune.space.optim.lr is 5, but must be a range ..."],
    "init=kaimng": ["init is 'kaimng'. Did you mean 'kaiming'? Known: ..."],
}
GOOD = {
    "optim.lr=2e-3": lambda e: e.optim.lr == 0.002,
    "optim.lr=1": lambda e: e.optim.lr == 1.0,
    "optim.betas=[0, 0.99]": lambda e: e.optim.betas == (0.0, 0.99),
    "optim={type: gd, momentum: 0.9}": lambda e: e.optim.type == "gd" and e.optim.momentum == 0.9,
    "optim.bias_correction=false": lambda e: e.optim.bias_correction is False,
    "model={hidden_size: 32, type: gru}": lambda e: e.model == {"hidden_size": 32, "type": "gru"},
    "model={num_filters: 7}": lambda e: e.model == {"type": "textcnn", "num_filters": 7},
    "data.train=[a.csv, b.csv]": lambda e: e.data.train == ["a.csv", "b.csv"],
    "data.text=no": lambda e: e.data.text == "no",  # YAML 1.2: a word
    "data.relabel={0: neg, true: pos, no: none}": lambda e: (
        e.data.relabel == {"0": "neg", "true": "pos", "no": "none"}  # a key is a word
    ),
    "tune.space.optim.lr=log:1e-4..1e-1": lambda e: e.tune.space == {"optim.lr": "log:1e-4..1e-1"},
    "data.relabel.a.b=c": lambda e: e.data.relabel == {"a.b": "c"},
    "output=runs/a=b": lambda e: e.output == "runs/a=b",
}


def refused(tmp_path, text: str, *overrides: str) -> list[str]:
    """The lines of the message, without the file's name."""
    file = tmp_path / "reviews.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as refusal:
        pipeline.read_experiment(file, overrides)
    return [line.removeprefix(f"{file}:") for line in str(refusal.value).splitlines()]


def are_like(found: list[str], expected: list[str]) -> None:
    assert len(found) == len(expected), found
    for line, form in zip(found, expected, strict=True):
        parts = form.split("...")
        assert line.startswith(parts[0]) and line.endswith(parts[-1]), line
        assert all(part in line for part in parts), line
        assert len(parts) > 1 or line == form


@pytest.mark.parametrize("text", FILES)
def test_a_mistake_is_named_with_its_line(text, tmp_path):
    are_like(refused(tmp_path, HEAD + text), FILES[text])


@pytest.mark.parametrize("text", WHOLE, ids=lambda text: text[:70])
def test_a_file_that_is_no_experiment_is_named(text, tmp_path):
    are_like(refused(tmp_path, text), WHOLE[text])


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_mistake_of_the_command_line_is_named_as_such(override, tmp_path):
    found = refused(tmp_path, HEAD + "model: {type: lstm}\noptim: {lr: 1e-3}", override)
    are_like(found, [f"command line: {line}" for line in OVERRIDES[override]])


def test_mistakes_of_file_and_command_line_are_told_together(tmp_path):
    found = refused(tmp_path, HEAD + "optim: {lr: x}\nmodel: {type: lstm, a: 1}", "train.epochs=0", "model.b=1", "c=1")
    assert [line.partition(":")[0] for line in found] == ["6", "7", *["command line"] * 3]


def test_a_right_value_of_the_command_line_takes_the_place_of_a_wrong_one(tmp_path):
    (tmp_path / "e.yaml").write_text(HEAD + "optim: {lr: x}\nmodel: {type: lstm, hiden_size: 1}")
    experiment = pipeline.read_experiment(tmp_path / "e.yaml", ["optim.lr=1", "model={type: gru}"])
    assert experiment.optim.lr == 1 and experiment.model == {"type": "gru"}


@pytest.mark.parametrize("override", GOOD)
def test_what_is_right_is_taken(override, tmp_path):
    (tmp_path / "e.yaml").write_text(HEAD)
    assert GOOD[override](pipeline.read_experiment(tmp_path / "e.yaml", [override]))


def test_a_file_that_is_not_there_is_named_with_its_neighbours(tmp_path):
    (tmp_path / "review.yaml").write_text(HEAD)
    with pytest.raises(ConfigError, match=f"reviews.yaml: no such file. In {tmp_path} there is: review.yaml"):
        pipeline.read_experiment(tmp_path / "reviews.yaml")
    with pytest.raises(ConfigError, match=f"The folder {tmp_path}/none does not exist either"):
        pipeline.read_experiment(tmp_path / "none" / "reviews.yaml")
    (tmp_path / "linked.yaml").symlink_to("gone.yaml")
    with pytest.raises(ConfigError, match="linked.yaml: is a link to gone.yaml, which does not exist"):
        pipeline.read_experiment(tmp_path / "linked.yaml")
    with pytest.raises(ConfigError, match="cannot be read: .*Is a directory"):
        pipeline.read_experiment(tmp_path)


def test_a_file_with_a_byte_order_mark_is_read_and_one_in_utf_16_is_refused(tmp_path):
    (tmp_path / "e.yaml").write_bytes(HEAD.encode("utf-8-sig"))
    assert pipeline.read_experiment(tmp_path / "e.yaml").data.text == "review"
    (tmp_path / "e.yaml").write_bytes(HEAD.encode("utf-16"))
    with pytest.raises(ConfigError, match="e.yaml: cannot be read: it is UTF-16. Save it as UTF-8"):
        pipeline.read_experiment(tmp_path / "e.yaml")
