"""Which samples form which step, as functions of (seed, epoch, step)."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.data.order import Order, generator, generators, permute, shard


def order(num: int, batch_size: int = 7, bucket: int = 3, seed: int = 0) -> Order:
    lengths = np.random.default_rng(num).integers(1, 200, num, dtype=np.int32)
    return Order(lengths, batch_size, bucket, seed)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4095, 4097])
def test_permute_is_a_permutation_of_every_size(size: int) -> None:
    for epoch in range(3):
        assert sorted(permute(np.arange(size), size, seed=1, epoch=epoch)) == list(range(size))


@settings(max_examples=50)
@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 1000))
def test_permute_is_the_same_whether_asked_for_all_or_for_one(size: int, seed: int, epoch: int) -> None:
    whole = permute(np.arange(size), size, seed, epoch)
    assert sorted(whole) == list(range(size))
    for position in {0, size // 2, size - 1}:
        assert permute(np.array([position]), size, seed, epoch) == whole[[position]]


@settings(max_examples=50)
@given(st.integers(0, 2**63), st.integers(0, 1000), st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=5))
def test_a_generator_set_anew_draws_what_a_new_one_does(seed: int, epoch: int, numbers: list[int]) -> None:
    for number, again in zip(numbers, generators(seed, epoch, numbers), strict=True):
        new = generator(seed, epoch, number)
        for draw in (lambda rng: rng.integers(0, 7, 3, np.int32), lambda rng: rng.random(5), lambda rng: rng.normal()):
            assert np.array_equal(draw(again), draw(new))  # the first leaves half a number behind


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(permute(np.arange(500), 500, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_every_position_is_as_likely_for_every_sample() -> None:
    """Chi-square over 2,000 epochs of 16 samples: 225 degrees of freedom, 5 standard deviations."""
    counts = np.zeros((16, 16))
    for epoch in range(2000):
        counts[np.arange(16), permute(np.arange(16), 16, seed=3, epoch=epoch)] += 1
    chi = ((counts - 125) ** 2 / 125).sum()
    assert abs(chi - 225) < 5 * np.sqrt(2 * 225)


@settings(max_examples=60)
@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 9), st.integers(0, 9))
def test_every_sample_comes_exactly_once_an_epoch(num: int, batch_size: int, bucket: int, seed: int) -> None:
    samples = order(num, batch_size, bucket, seed)
    for epoch in (0, 5):
        steps = range(epoch * samples.steps_per_epoch, (epoch + 1) * samples.steps_per_epoch)
        batches = [samples.batch(step) for step in steps]
        assert sorted(np.concatenate(batches)) == list(range(num))
        sizes = sorted(len(batch) for batch in batches)
        assert sizes[1:] == [batch_size] * (len(sizes) - 1) and 0 < sizes[0] <= batch_size


def test_any_step_may_be_asked_for_first() -> None:
    walked = order(500)
    batches = [walked.batch(step) for step in range(3 * walked.steps_per_epoch)]
    for step in (200, 3, 77, 4, 150):
        np.testing.assert_array_equal(order(500).batch(step), batches[step])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_samples_of_a_step_are_the_same_for_any_number_of_workers(world: int) -> None:
    samples = order(100, batch_size=16)
    for step in range(samples.steps_per_epoch):
        batch = samples.batch(step)
        parts = [shard(batch, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def padding(samples: Order) -> float:
    """Padded tokens to real ones, over an epoch."""
    batches = [samples.lengths[samples.batch(step)] for step in range(samples.steps_per_epoch)]
    return sum(len(batch) * int(batch.max()) for batch in batches) / int(samples.lengths.sum())


def test_bucketing_leaves_little_padding_and_batches_in_random_order() -> None:
    purely_random, bucketed = order(5000, 32, bucket=1), order(5000, 32, bucket=50)
    assert padding(purely_random) > 1.8
    assert padding(bucketed) < 1.1
    longest = [int(bucketed.lengths[bucketed.batch(step)].max()) for step in range(50)]
    rises = sum(a < b for a, b in zip(longest, longest[1:], strict=False))
    assert 10 < rises < 40, "sorted batches would teach short texts first"


def test_a_step_costs_its_window_and_not_the_data_set() -> None:
    lengths = np.broadcast_to(np.int32(7), (10**12,))  # of a million million samples, all of one length
    began = time.monotonic()
    batch = Order(lengths, 64, 50, seed=0).batch(1_234_567_890)
    assert time.monotonic() - began < 1
    assert len(set(batch.tolist())) == 64 and batch.max() > 10**11


def test_random_numbers_are_a_function_of_seed_epoch_and_sample() -> None:
    drawn = {(s, e, n): generator(s, e, n).random() for s in range(3) for e in range(3) for n in range(50)}
    assert len(set(drawn.values())) == len(drawn)
    assert drawn[2, 1, 7] == generator(2, 1, 7).random()
