"""Who must keep the contract. An architecture joins with one line in MEMBERS, a task with one in WORK.

A field of a model section that is a function is called with an empty folder: it makes what the field names.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel import tasks
from bigmodel.data.clean import read_options
from bigmodel.data.sources import open_rows
from bigmodel.experiment import Experiment, TokenizerConfig, change
from bigmodel.tasks.base import WHOLE


@dataclass(frozen=True)
class Work:
    """What a task learns by heart: a file of rows with targets, and how the data section names its columns."""

    write: Callable[[Path], None]
    file: str
    data: dict[str, Any]
    fields: dict[str, str] = field(default_factory=dict)
    """Role -> what the endpoint calls it, where it is called otherwise."""
    asked: str = ""
    """The file of what is asked, beside `file`; nothing where that is what is learnt, without the targets."""
    known: float = 0.05
    """A loss below which the rows are known by heart."""


@dataclass(frozen=True, eq=False)
class Member:
    """One architecture at one task."""

    name: str
    task: str
    model: dict[str, Any]
    lr: float = 0.005
    epochs: int = 60

    def __str__(self) -> str:
        return f"{self.task}: {self.name}"

    def experiment(self, folder: Path) -> dict[str, Any]:
        """A tree that learns the task's rows by heart; its files are written to the folder."""
        work = WORK[self.task]
        file = folder / work.file
        folder.mkdir(parents=True, exist_ok=True)
        work.write(file)
        return {
            "task": self.task,
            "data": {"train": str(file), "valid": str(file), "split": {"test": 0}, **work.data},
            "model": {key: value(folder / key) if callable(value) else value for key, value in self.model.items()},
            "optim": {"lr": self.lr},
            "train": {
                "epochs": self.epochs,
                "batch_size": 8,
                "validate_every": 3 * self.epochs,
                "precision": "fp32",
                "threads": 1,
            },
            "output": str(folder / "run"),
        }


def asked_file(experiment: Experiment) -> Path:
    learnt = Path(str(experiment.data.train))
    return learnt.with_name(WORK[experiment.task].asked or learnt.name)


def asked_in(experiment: Experiment) -> list[dict[str, Any]]:
    """What the rows of that file ask, as they stand there and in a request, without the targets: role -> value,
    or column -> value of a table."""
    task, data = tasks.get(experiment.task), experiment.data
    wanted = task.columns(data)
    if WHOLE in wanted.values():
        return [row for row, _ in read_tables(asked_file(experiment), wanted["label"])]
    asked = {role: column for role, column in task.columns(data).items() if role not in task.targets}
    _, records = open_rows(str(asked_file(experiment)), read_options(data))
    called = WORK[experiment.task].fields
    return [
        as_json({called.get(role, role): record.values[column] for role, column in asked.items()}) for record in records
    ]


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A question as the endpoint takes it: bytes in base64."""
    return {role: b64encode(value).decode() if isinstance(value, bytes) else value for role, value in row.items()}


def write_texts(file: Path) -> None:
    """24 texts with one of three labels at random, to be learnt by heart; the last is longer than a model reads."""
    rng = random.Random(0)
    syllables = [a + b for a, b in itertools.product(CONSONANTS, VOWELS)]
    rows = []
    for number in range(24):
        words = ["".join(rng.choices(syllables, k=2)) for _ in range(rng.randint(1, 12))]
        rows.append([" ".join(words), ("good", "très bien", "坏")[number % 3]])
    rows[3][0] = "Ａ\u3000naïve\u00a0CAFE\u0301,\tbabe\n 很好!  "
    rows[23][0] = " ".join("".join(rng.choices(syllables, k=2)) for _ in range(40))
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([["review", "stars"], *rows])


def write_table(file: Path, label: Callable[[random.Random, int], Any]) -> None:
    """24 rows of every kind of column, some of them empty, with a target at random, to be learnt by heart."""
    rng = random.Random(0)
    with open(file, "w", encoding="utf-8") as out:
        for number in range(24):
            row = {
                "age (years)": rng.choice([None, rng.randint(18, 90), rng.uniform(18, 90)]),
                "income": rng.lognormvariate(10, 2),
                "city": rng.choice(["Lyon", "北京", "Rome", None]),
                "class": rng.choice("abcdef"),
                "member": rng.random() < 0.5,
                "since": f"20{rng.randint(10, 23)}-0{rng.randint(1, 9)}-{rng.randint(10, 28)}",
                "target": label(rng, number),
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_labels(file: Path) -> None:
    write_table(file, lambda rng, number: ("good", "très bien", "坏")[number % 3])


def write_numbers(file: Path) -> None:
    write_table(file, lambda rng, number: rng.gauss(0, 1))


def read_tables(file: Path, label: str) -> list[tuple[dict[str, Any], Any]]:
    """Rows of JSON Lines without the target, and the target."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [({name: value for name, value in row.items() if name != label}, row[label]) for row in rows]


def write_pictures(file: Path) -> None:
    """24 pictures of noise with one of three labels, to be learnt by heart; grey and colour, of several sizes."""
    import io

    import numpy as np
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        shape = (16, 16) if number % 2 else (16, 12 + number // 4, 3)
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(out, "PNG")
        rows.append({"picture": out.getvalue(), "kind": ("cat", "chat noir", "猫")[number % 3]})
    parquet.write_table(pa.Table.from_pylist(rows), file)


def tiny_vit(folder: Path) -> str:
    """A checkpoint of transformers, as one finds them: body, image processor, no head."""
    import torch
    from transformers import AutoModel, ViTConfig
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(ViTConfig(image_size=16, patch_size=4, **ENCODER)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def write_pairs(file: Path) -> None:
    """The same texts, each with one of three translations."""
    write_texts(file)
    with open(file, encoding="utf-8", newline="") as texts:
        _, *rows = csv.reader(texts)
    written = {"good": "A good man, 1,234.", "très bien": "très bien (d'accord)", "坏": "坏人 naïve"}
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([["german", "english"], *([text, written[label]] for text, label in rows)])


def write_stories(file: Path) -> None:
    """24 texts to be learnt by heart, and their beginnings."""
    rng = random.Random(0)
    starts = [first + vowel for first, vowel in itertools.product("bdfgkl", "aeio")]
    ends = ["The End.\n", "très bien,\tna\u00efve", "坏人 很好! \U0001f600", "  and so on"]
    stories = [f"{start}: {rng.choice(ends) * rng.randint(1, 4)}" for start in starts]
    for name, texts in ((file, stories), (file.with_name("beginnings.jsonl"), [text[:8] for text in stories])):
        lines = [json.dumps({"story": text}, ensure_ascii=False) + "\n" for text in texts]
        name.write_text("".join(lines), "utf-8")


def tiny_gpt2(folder: Path) -> str:
    """A checkpoint of transformers, as one finds them: decoder and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    from bigmodel.tasks import exact_tokenizer

    processor = exact_tokenizer.train(["The End and so on"], "bpe", TokenizerConfig(vocab_size=270), max_length=96)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": processor.bos_token_id, "eos_token_id": processor.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(processor), n_positions=96, **shape, **ends)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def tiny_bert(folder: Path) -> str:
    """A checkpoint of transformers, as one finds them: body, tokenizer, no head."""
    import torch
    from transformers import AutoModel, BertConfig

    from bigmodel.tasks import tokenizer

    words = [first + vowel + second for first, vowel, second in itertools.product(CONSONANTS, VOWELS, CONSONANTS)]
    processor = tokenizer.train(words * 2, "wordpiece", TokenizerConfig(vocab_size=100), enclose=True, max_length=24)
    config = BertConfig(vocab_size=len(processor), max_position_embeddings=24, pad_token_id=0, **ENCODER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TRANSLATOR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
DECODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
RECURRENT = {"hidden_size": 16, "embedding_size": 16}
CONVOLUTIONS = {"num_filters": 12, "embedding_size": 16, "dropout": 0.2}
NGRAMS = {"ngram_orders": [1, 2], "ngram_buckets": 500, "ngram_size": 16}

READ = {"text": "review", "label": "stars", "max_length": 20, "tokenizer": {"min_frequency": 1}}
PAIRS = {
    "source": "german",
    "target": "english",
    "max_length": 40,
    "tokenizer": {"vocab_size": 200, "min_frequency": 1},
}
STORIES = {"text": "story", "max_length": 96}
WORK = {
    "text-classification": Work(write_texts, "texts.csv", READ),
    "image-classification": Work(write_pictures, "pictures.parquet", {"image": "picture", "label": "kind"}),
    "tabular-classification": Work(write_labels, "labels.jsonl", {"label": "target"}),
    "tabular-regression": Work(write_numbers, "numbers.jsonl", {"label": "target"}),
    "translation": Work(write_pairs, "pairs.csv", PAIRS, {"source": "text"}),
    "text-generation": Work(write_stories, "stories.jsonl", STORIES, asked="beginnings.jsonl", known=0.6),
}
TEXT, IMAGE, STORY = "text-classification", "image-classification", "text-generation"
LABELS, NUMBERS = "tabular-classification", "tabular-regression"
PERCEPTRON = {"embedding_size": 8, "hidden_size": 32, "dropout": 0.0}
COLUMNS = {"embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
           "attention_dropout": 0.0, "dropout": 0.0}  # fmt: skip
LORA = {"rank": 16, "alpha": 64, "merge": True}
MEMBERS = [
    Member("lstm", TEXT, {"type": "lstm", "num_hidden_layers": 2, **RECURRENT}),
    Member("gru", TEXT, {"type": "gru", "pooling": "last", **RECURRENT}),
    Member("textcnn", TEXT, {"type": "textcnn", **CONVOLUTIONS}),
    Member("textcnn with n-grams", TEXT, {"type": "textcnn", **CONVOLUTIONS, **NGRAMS}),
    Member("textcnn with votes", TEXT, {"type": "textcnn", **CONVOLUTIONS, **NGRAMS, "ngram_size": 0}),
    Member("transformer", TEXT, {"type": "transformer", **ENCODER}),
    Member("perceptron", LABELS, {"type": "tabular_mlp", **PERCEPTRON}),
    Member("columns as tokens", LABELS, {"type": "ft_transformer", **COLUMNS}),
    Member("perceptron", NUMBERS, {"type": "tabular_mlp", **PERCEPTRON}),
    Member("columns as tokens", NUMBERS, {"type": "ft_transformer", **COLUMNS}),
    Member("cnn", IMAGE, {"type": "cnn", "hidden_sizes": [16, 32], "depths": [1, 1], "dropout": 0.0}),
    Member("resnet", IMAGE, {"type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1]}),
    Member("vit", IMAGE, {"type": "vit", "hidden_dropout_prob": 0.0, **ENCODER}),
    Member("a pretrained vit", IMAGE, {"pretrained": tiny_vit, "hidden_dropout_prob": 0.0}),
    Member("transformer", "translation", {"type": "transformer", **TRANSLATOR}),
    Member(
        "recurrent", "translation", {"type": "rnn_seq2seq", "dropout": 0.0, "hidden_size": 64, "embedding_size": 64}
    ),
    Member("transformer", STORY, {"type": "transformer", **DECODER}),
    Member("lstm", STORY, {"type": "lstm_lm", "hidden_size": 96, "embedding_size": 32}),
    Member("gru", STORY, {"type": "gru_lm", "hidden_size": 64, "embedding_size": 32}),
    Member("a pretrained gpt2", STORY, {"pretrained": tiny_gpt2, "attn_pdrop": 0.0}),
    Member("pretrained", TEXT, {"pretrained": tiny_bert, "hidden_dropout_prob": 0.0}),
    Member("lora", TEXT, {"pretrained": tiny_bert, "hidden_dropout_prob": 0.0, "lora": LORA}, lr=0.002, epochs=120),
]


def small(task: str, model: dict[str, Any], *changes: str) -> Callable[..., Experiment]:
    """small(...)(folder, "key=value", ...): an experiment that takes seconds."""
    member = Member("small", task, model)
    return lambda folder, *more: change(member.experiment(folder), [*changes, *more])


ONE_STAGE = {"type": "cnn", "hidden_sizes": [8], "depths": [1], "dropout": 0.0}
SMALL = {
    IMAGE: small(IMAGE, ONE_STAGE, "data.augment.crop=0.2", "data.augment.mixup=0.3"),
    "translation": small(
        "translation",
        {"type": "transformer", **TRANSLATOR},
        *("data.augment.token_dropout=0.2", "train.batch_tokens=300", "train.label_smoothing=0.1"),
    ),
    STORY: small(STORY, {"type": "transformer", **DECODER}, "data.max_length=24"),
    LABELS: small(LABELS, {"type": "ft_transformer", **COLUMNS}),
    NUMBERS: small(NUMBERS, {"type": "ft_transformer", **COLUMNS}),
}
"""One member of each task but text-classification, with augmentation and batches of unlike size."""
