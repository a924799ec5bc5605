"""Batches by padded tokens: every sample once an epoch, of like size, with little padding, without state."""

import numpy as np
import pytest

from bigmodel.data.order import Order

RNG = np.random.default_rng(0)
ONE = RNG.integers(3, 40, 12_000).astype(np.int32)
TWO = np.stack([ONE, np.clip(ONE + RNG.integers(-4, 5, 12_000), 2, None)], axis=1).astype(np.int32)


@pytest.mark.parametrize("lengths", [ONE, TWO], ids=["one side", "two sides"])
def test_every_sample_comes_once_an_epoch(lengths):
    order = Order(lengths, 64, 20, seed=3, batch_tokens=2000)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert sorted(np.concatenate([order.batch(step) for step in steps]).tolist()) == list(range(len(lengths)))


def test_batches_are_of_like_size_and_hold_little_padding():
    order = Order(TWO, 64, 50, seed=3, batch_tokens=2000)
    batches = [TWO[order.batch(step)] for step in range(order.steps_per_epoch)]
    padded = [len(batch) * batch.max(0).sum() for batch in batches]
    assert max(padded) < 2400
    assert sum(batch.sum() for batch in batches) >= 0.92 * sum(padded)


def test_a_step_does_not_depend_on_those_before_it():
    first, again = (Order(TWO, 64, 50, seed=3, batch_tokens=2000) for _ in range(2))
    for step in (57, 3, 200):
        first.batch(step - 1)
        assert first.batch(step).tolist() == again.batch(step).tolist()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_few_samples_and_long_ones_are_all_there(size):
    order = Order(TWO[:size], 64, 50, seed=0, batch_tokens=10)
    found = [order.batch(step).tolist() for step in range(order.steps_per_epoch)]
    assert sorted(sum(found, [])) == list(range(size)) and all(found)
