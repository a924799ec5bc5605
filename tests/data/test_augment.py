"""Random changes to a training text: how often, and that they depend on seed, epoch and sample alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bigmodel.data.order import generator
from bigmodel.experiment import Experiment, TokenizerConfig
from bigmodel.tasks import augment, text_classification, tokenizer

TEXT = np.arange(10, 60, dtype=np.int32)


def drop(ids: Any, rng: Any, rate: float) -> Any:
    return augment.token_dropout(ids, rng, rate)


def swap(ids: Any, rng: Any, rate: float) -> Any:
    return augment.swap(ids, rng, rate)


def mask(ids: Any, rng: Any, rate: float) -> Any:
    return augment.mask(ids, rng, rate, unknown=1)


Change = Callable[[Any, Any, float], Any]


@pytest.mark.parametrize("change", [drop, swap, mask])
def test_a_change_is_a_function_of_seed_epoch_and_sample(change: Change) -> None:
    before = TEXT.copy()
    first = change(TEXT, generator(0, 3, 17), 0.3)
    np.testing.assert_array_equal(first, change(TEXT, generator(0, 3, 17), 0.3))
    np.testing.assert_array_equal(TEXT, before, "the sample on disk stays as it is")
    others = [change(TEXT, generator(*key), 0.3).tolist() for key in [(1, 3, 17), (0, 4, 17), (0, 3, 18)]]
    assert all(other != first.tolist() for other in others)
    assert first.dtype == np.int32


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("change", [drop, swap, mask])
def test_the_rate_is_that_of_each_token(change: Change, rate: float) -> None:
    """3,000 texts of 50 tokens: every token within five standard deviations of its rate."""
    num = 3000
    changed = np.zeros(len(TEXT))
    for sample in range(num):
        after = change(TEXT, generator(7, 0, sample), rate)
        if change is drop:
            changed += ~np.isin(TEXT, after)
        elif change is mask:
            changed += after == 1
        else:
            changed[:-1] += (after[:-1] == TEXT[1:]) & (after[1:] == TEXT[:-1])
    looked_at = changed[:-1] if change is swap else changed
    assert np.abs(looked_at / num - rate).max() < 5 * np.sqrt(rate * (1 - rate) / num)


@pytest.mark.parametrize("rate", [0.4, 0.9])
def test_swapping_loses_no_token_and_moves_none_twice(rate: float) -> None:
    for sample in range(200):
        after = augment.swap(TEXT, generator(0, 0, sample), rate)
        assert sorted(after) == sorted(TEXT)
        assert np.abs(np.argsort(after) - np.arange(len(TEXT))).max() <= 1


@pytest.mark.parametrize("change", [drop, swap, mask])
@pytest.mark.parametrize("length", [1, 2])
def test_short_texts_keep_a_token(change: Change, length: int) -> None:
    for sample in range(50):
        assert len(change(TEXT[:length], generator(0, 0, sample), 0.99)) >= 1


@pytest.mark.parametrize("enclose", [False, True])
def test_a_sample_is_changed_inside_its_enclosing_tokens_and_alone_as_in_a_batch(enclose: bool) -> None:
    words = [" ".join(f"word{i * j % 97}" for i in range(1, 30)) for j in range(1, 9)]
    processor = tokenizer.train(words, "word", TokenizerConfig(min_frequency=1), enclose, max_length=64)
    experiment = Experiment.model_validate(
        {
            "task": "text-classification",
            "data": {"train": "x", "augment": {"token_dropout": 0.2, "swap": 0.2, "mask": 0.2}},
        }
    )
    samples = text_classification.encode([{"text": text} for text in words], processor, {})

    def changed(numbers: list[int]) -> dict[int, list[int]]:
        found = {
            i: text_classification.augment(samples[i], generator(0, 1, i), experiment, processor, samples)
            for i in numbers
        }
        return {i: sample["input_ids"].tolist() for i, sample in found.items()}

    together = changed(list(range(8)))
    assert together == changed([5, 3, 1, 7]) | changed([2, 0, 4, 6])
    for i, ids in together.items():
        assert ids != samples[i]["input_ids"].tolist()
        if enclose:
            assert (ids[0], ids[-1]) == (processor.cls_token_id, processor.sep_token_id)
            assert not {processor.cls_token_id, processor.sep_token_id} & set(ids[1:-1])
