"""Batches: who goes with whom, in which order, and what happens when one fails or leaves."""

import asyncio
import threading
import time

import pytest

from serve_app.batching import Batcher, Batching, Waiting, choose


def waiting(*sizes, ages=None):
    ages = ages or [0.0] * len(sizes)
    return [Waiting(str(i), size, -age, None) for i, (size, age) in enumerate(zip(sizes, ages, strict=True))]


def sizes(batch):
    return [one.size for one in batch]


@pytest.mark.parametrize(
    ("asked", "how", "expected"),
    [
        ([5, 5, 5], Batching(), [5, 5, 5]),
        ([200, 5, 6], Batching(), [5, 6]),  # padding 5 and 6 to 200 costs more than a call
        ([200, 190, 5], Batching(), [5]),
        ([30, 40, 50], Batching(max_tokens=100), [30, 40]),
        ([500, 600], Batching(max_tokens=100), [500]),  # larger than a batch: alone
        ([5, 300, 6, 7], Batching(pads=False), [5, 300, 6, 7]),
        ([5, 300, 6, 7], Batching(pads=False, max_tokens=310), [5, 300]),
        ([500, 6], Batching(pads=False, max_tokens=100), [500]),
    ],
)
def test_neighbours_in_length_go_together_as_far_as_padding_pays(asked, how, expected):
    assert sizes(choose(waiting(*asked), 0.0, how)) == expected


def test_who_has_waited_too_long_goes_first_whatever_its_length():
    items = waiting(5, 300, 6, ages=[0.0, 0.2, 0.05])
    assert sizes(choose(items, 0.0, Batching(max_age_s=0.1))) == [300]
    assert sizes(choose(items, 0.0, Batching(max_age_s=0.5))) == [5, 6]


def run(scene):
    return asyncio.run(asyncio.wait_for(scene(), 10))


def test_results_come_back_to_those_who_asked_in_their_order():
    batcher = Batcher(lambda items: [item * 2 for item in items])

    async def scene():
        asked = [[f"{i}.{k}" for k in range(1 + i % 3)] for i in range(50)]
        found = await asyncio.gather(*(batcher.ask(items, [len(item) for item in items]) for items in asked))
        assert found == [[item * 2 for item in items] for items in asked]

    run(scene)


def test_those_who_come_while_a_batch_runs_go_together_in_the_next():
    go, seen = threading.Event(), []

    def work(items):
        seen.append(list(items))
        go.wait(5)
        return items

    batcher = Batcher(work)

    async def scene():
        first = asyncio.create_task(batcher.ask(["first"], [1]))
        while not seen:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.ask([str(i)], [1])) for i in range(5)]
        await asyncio.sleep(0.01)
        assert batcher.num_waiting == 5
        go.set()
        assert await first == ["first"]
        await asyncio.gather(*others)

    run(scene)
    assert seen == [["first"], ["0", "1", "2", "3", "4"]]


def test_two_workers_share_what_waits_and_run_at_once():
    together, seen, threads = threading.Barrier(2, timeout=5), [], set()

    def work(items):
        seen.append(len(items))
        together.wait()  # breaks unless both run
        return items

    batcher = Batcher(work, Batching(pads=False), threads=2, begin=lambda: threads.add(threading.get_ident()))

    async def scene():
        texts = [str(i) for i in range(20)]
        assert await batcher.ask(texts, [100] * 20) == texts

    run(scene)
    assert seen == [10, 10] and len(threads) == 2


def test_what_is_not_worth_two_calls_is_one_batch():
    seen = []
    batcher = Batcher(lambda items: seen.append(len(items)) or items, Batching(pads=False), threads=2)

    async def scene():
        await batcher.ask(["a", "b", "c"], [20, 30, 40])

    run(scene)
    assert seen == [3]


def test_only_the_guilty_one_of_a_batch_fails():
    def work(items):
        if "bad" in items:
            raise ValueError("bad is not good")
        return items

    batcher = Batcher(work)

    async def scene():
        asked = [batcher.ask([item], [1]) for item in ("a", "bad", "b")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert found[0] == ["a"] and found[2] == ["b"] and isinstance(found[1], ValueError)
        with pytest.raises(ValueError, match="bad is not good"):
            await batcher.ask(["a", "bad", "bad"], [1, 1, 1])
        assert await batcher.ask(["c"], [1]) == ["c"]

    run(scene)


def test_a_model_that_loses_an_answer_is_an_error_not_a_wait():
    batcher = Batcher(lambda items: items[1:])

    async def scene():
        with pytest.raises(AssertionError, match="0 results for 1 items"):
            await batcher.ask(["a"], [1])

    run(scene)


def test_who_has_left_costs_nothing():
    seen = []

    def work(items):
        seen.extend(items)
        time.sleep(0.05)
        return items

    batcher = Batcher(work)

    async def scene():
        first = asyncio.create_task(batcher.ask(["first"], [1]))
        await asyncio.sleep(0.01)
        leaver = asyncio.create_task(batcher.ask(["leaver"], [1]))
        stayer = asyncio.create_task(batcher.ask(["stayer"], [1]))
        await asyncio.sleep(0)
        leaver.cancel()
        assert await stayer == ["stayer"] and await first == ["first"]
        with pytest.raises(asyncio.CancelledError):
            await leaver

    run(scene)
    assert seen == ["first", "stayer"]


def test_what_ran_is_told_with_its_padding():
    told = []
    run_both = {"pads": True}, {"pads": False}
    for how in run_both:
        batcher = Batcher(lambda items: items, Batching(**how), told.append)

        async def scene(batcher=batcher):
            await batcher.ask(["a", "b"], [4, 6])

        run(scene)
    assert [(ran.items, ran.tokens, ran.padded_tokens) for ran in told] == [(2, 10, 12), (2, 10, 10)]
