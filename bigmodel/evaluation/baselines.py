"""What a classifier has to beat, on the same rows: the most frequent label, and a linear model that costs seconds.

For texts the linear model is a linear SVM (Fan et al., 2008, LIBLINEAR, http://jmlr.org/papers/v9/fan08a.html) over
TF-IDF weights of n-grams: of characters for Chinese-like text, of words otherwise, by the same look at the training
texts that chooses the tokenizer. For images it is a logistic regression on the pixels of small copies. The settings are
fixed, so that the numbers are a property of the data, comparable between runs.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel.errors import first_line
from bigmodel.evaluation.evidence import Training
from bigmodel.evaluation.metrics import accuracy, accuracy_interval, confusion, macro_f1, mcnemar
from bigmodel.evaluation.overlap import Overlap
from bigmodel.tasks import pictures, tokenizer
from bigmodel.tasks.base import Row
from bigmodel.tasks.sampling import sample

NGRAMS = (1, 2)
C = 0.5
MAX_ROWS = 100_000  # training rows the linear model sees: more cost minutes and hardly move it
RARE = 2  # n-grams of fewer texts are left out, where there are texts enough
FEW_ROWS = 100
MAX_IMAGES = 4000  # training images it sees: enough for what a linear model can learn of pixels
PIXELS = 28 * 28  # numbers that an image becomes, at most
ITERATIONS = 50
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 1000, 10_000
ALPHA = 0.05  # of McNemar's test: below it a difference is called beyond noise


@dataclass(frozen=True)
class Survey:
    """What one pass over the training rows tells."""

    labels: Counter[str]
    num_rows: int
    rows: Training
    """All rows, in their order; a random choice of them where there are more than were asked for."""


def survey(
    training: Training, overlap: Overlap, content: Callable[[Row], str], most: int | None = None, held: bool = True
) -> Survey:
    """`overlap` is told of all rows. Those chosen are held, or else read again whenever they are asked for."""
    labels: Counter[str] = Counter()

    def counted() -> Iterator[Row]:
        for row in training():
            labels[row["label"]] += 1
            overlap.see(content(row))
            yield row

    if held:
        rows = sample(counted(), most or MAX_ROWS)
        return Survey(labels, len(rows), lambda: rows)
    numbers = set(sample((number for number, _ in enumerate(counted())), most or MAX_ROWS))
    return Survey(labels, len(numbers), lambda: (row for number, row in enumerate(training()) if number in numbers))


def majority(counts: Counter[str], wanted: Sequence[str], source: str) -> dict[str, Any]:
    """Always the most frequent label of `counts`, which come from the rows that `source` names."""
    label = max(sorted(counts), key=counts.__getitem__)
    found = [label] * len(wanted)
    return {"label": label, "of": source, "accuracy": accuracy(found, wanted), "macro_f1": macro_f1(found, wanted)}


def linear(rows: Sequence[Row], texts: Iterable[str], wanted: Sequence[str], model: Sequence[str]) -> dict[str, Any]:
    """Fit on `rows`, answer `texts`, and compare with what `model` answered; {"reason"} where nothing can be fitted."""
    start = time.perf_counter()
    kind = tokenizer.choose(row["text"] for row in rows)
    try:
        found = fit_and_answer(rows, texts, "char" if kind == "char" else "word")
    except ValueError as e:
        return {"reason": f"scikit-learn could not fit it: {first_line(e)}"}
    features = f"TF-IDF of {'character' if kind == 'char' else 'word'} 1- and 2-grams, linear SVM"
    return _judged(features, len(rows), time.perf_counter() - start, found, wanted, model)


def linear_of_images(
    rows: Training, images: Iterable[bytes], wanted: Sequence[str], model: Sequence[str]
) -> dict[str, Any]:
    """The same for images; `rows` are gone through several times, and not held."""
    start = time.perf_counter()
    labels = [row["label"] for row in rows()]
    if len(set(labels)) < 2:
        return {"reason": "the training rows have one label only"}
    found, features = fit_and_answer_images(rows, labels, images)
    return _judged(features, len(labels), time.perf_counter() - start, found, wanted, model)


def _judged(
    features: str, num_rows: int, seconds: float, found: Sequence[str], wanted: Sequence[str], model: Sequence[str]
) -> dict[str, Any]:
    labels = sorted({*found, *wanted})
    return {
        "features": features,
        "training_rows": num_rows,
        "seconds": round(seconds, 2),
        "accuracy": accuracy(found, wanted),
        "macro_f1": macro_f1(found, wanted),
        "interval": list(accuracy_interval(confusion(found, wanted, labels))),
        "comparison": compare(model, found, wanted),
    }


def fit_and_answer(rows: Sequence[Row], texts: Iterable[str], analyzer: str) -> list[str]:
    """The linear model's label of each text. ValueError where the rows have one label only, or no n-gram at all."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    rare = RARE if len(rows) >= FEW_ROWS else 1
    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=NGRAMS, sublinear_tf=True, min_df=rare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last bit of the optimum changes no comparison
        svm = LinearSVC(C=C, random_state=0)
        svm.fit(vectorizer.fit_transform([row["text"] for row in rows]), [row["label"] for row in rows])
    found: list[str] = []
    texts = iter(texts)
    while some := list(itertools.islice(texts, TEXTS_AT_ONCE)):
        found += map(str, svm.predict(vectorizer.transform(some)))
    return found


def fit_and_answer_images(rows: Training, labels: Sequence[str], images: Iterable[bytes]) -> tuple[list[str], str]:
    """The label of each image by a logistic regression on pixels, and what it was given of them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    looked_at = [(pictures.header(row["image"]).mode, pictures.upright_size(row["image"])) for row in rows()]
    mode = "L" if all(mode in pictures.GREY for mode, _ in looked_at) else "RGB"
    size = _small([size for _, size in looked_at], len(mode))
    model = LogisticRegression(max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.stack(list(_pixels((row["image"] for row in rows()), mode, size))), labels)
    found: list[str] = []
    copies = _pixels(images, mode, size)
    while some := list(itertools.islice(copies, IMAGES_AT_ONCE)):
        found += map(str, model.predict(np.stack(some)))
    return found, f"{size[0]} by {size[1]} {'grey' if mode == 'L' else 'coloured'} pixels, logistic regression"


def _small(sizes: Sequence[tuple[int, int]], channels: int) -> tuple[int, int]:
    """Width and height, in proportion those of most images, of a copy that is no more than PIXELS numbers."""
    height, width = (float(np.median(side)) for side in zip(*sizes, strict=True))
    scale = min(1.0, (PIXELS / channels / (height * width)) ** 0.5)
    return max(1, int(width * scale)), max(1, int(height * scale))


def _pixels(images: Iterable[bytes], mode: str, size: tuple[int, int]) -> Iterator[Any]:
    """Of each (H * W * channels,), from 0 to 1."""
    copies = (pictures.decode(image, max(size)).convert(mode).resize(size) for image in images)
    return (np.asarray(copy, np.float32).reshape(-1) / 255 for copy in copies)


def compare(
    model: Sequence[str], baseline: Sequence[str], wanted: Sequence[str], name: str = "linear"
) -> dict[str, Any]:
    """Who is right more often, and whether by more than chance: McNemar's test on the rows only one has right."""
    only_model = sum(m == w != b for m, b, w in zip(model, baseline, wanted, strict=True))
    only_baseline = sum(b == w != m for m, b, w in zip(model, baseline, wanted, strict=True))
    p = mcnemar(only_model, only_baseline)
    ahead = only_model - only_baseline
    return {
        "only_model_right": only_model,
        f"only_{name.replace(' ', '_')}_right": only_baseline,
        "difference": ahead / len(wanted),
        "p": p,
        "better": "model" if ahead > 0 else name if ahead < 0 else "neither",
        "beyond_noise": p < ALPHA,
        "statement": _statement(ahead / len(wanted), p, "the linear baseline" if name == "linear" else name),
    }


def _statement(difference: float, p: float, name: str) -> str:
    if not difference:
        return f"The model and {name} are right equally often."
    first, second = ("the model", name) if difference > 0 else (name, "the model")
    noise = "beyond noise" if p < ALPHA else "within noise: these rows do not tell them apart"
    shown = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    subject = first[0].upper() + first[1:]
    return f"{subject} is better than {second} by {abs(difference) * 100:.2f} points, {noise} (McNemar {shown})."
