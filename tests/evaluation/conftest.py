"""Small models that have learnt to tell reviews apart, in this process and in about a second each."""

import csv
from collections.abc import Callable
from functools import cache

import pytest

from bigmodel import models, tasks
from bigmodel.experiment import Experiment
from bigmodel.models.init import initialize
from bigmodel.predictor import Predictor

Teach = Callable[..., Predictor]

MODELS = {  # the model, its learning rate, its epochs
    "lstm": ({"type": "lstm", "hidden_size": 24, "embedding_size": 16}, 1e-2, 6),
    "gru": (
        {"type": "gru", "hidden_size": 24, "embedding_size": 16, "bidirectional": False, "pooling": "last"}, 1e-2, 8
    ),
    "textcnn": ({"type": "textcnn", "num_filters": 16, "embedding_size": 16}, 1e-2, 6),
    "textcnn with n-grams": (
        {"type": "textcnn", "num_filters": 16, "embedding_size": 16,
         "ngram_orders": [1, 2, 3], "ngram_buckets": 1000, "ngram_size": 8}, 1e-2, 6,
    ),
    "n-grams alone": (
        {"type": "textcnn", "kernel_sizes": [], "ngram_orders": [1], "ngram_buckets": 1000, "ngram_size": 8}, 5e-2, 6
    ),
    "transformer": ({"type": "transformer", "hidden_size": 32, "num_hidden_layers": 1}, 5e-3, 6),
}  # fmt: skip


def read(path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def review_rows(reviews, tmp_path_factory):
    """review_rows(n, seed): cleaned rows of generated reviews."""
    folder = tmp_path_factory.mktemp("reviews")
    return lambda n, seed=0: read(reviews(folder / f"{n}-{seed}.csv", n, seed))


@pytest.fixture(scope="session")
def teach(review_rows) -> Teach:
    """teach(name): a predictor with one of MODELS, taught 400 generated reviews; the same one each time."""
    return cache(lambda name: taught(review_rows(400), *MODELS[name]))


def taught(rows, model, lr, epochs) -> Predictor:
    import torch

    experiment = Experiment.model_validate(
        {"task": "text-classification", "data": {"train": "-", "text": "text", "label": "label"}, "model": model}
    )
    task = tasks.get(experiment.task)
    processor, learnt = task.fit(lambda: iter(rows), experiment)
    torch.manual_seed(0)
    net = models.build(model, learnt, experiment.task)
    initialize(net, experiment.init, 0)
    samples = task.encode(rows, processor, learnt)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    for _ in range(epochs):
        for start in range(0, len(samples), 32):
            batch = task.collate(samples[start : start + 32], processor)
            (task.loss(net, batch, experiment) / len(batch["labels"])).backward()
            optimizer.step()
            optimizer.zero_grad()
    return Predictor(experiment.task, net.eval(), processor, {})
