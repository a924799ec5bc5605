"""Answers on disk are the list that they stand for."""

import math

import pytest

from bigmodel.data.answers import AT_ONCE, Answers


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, 2 * AT_ONCE + 5])
def test_answers_on_disk_are_a_list_of_them_to_the_last_bit(count):
    made = [{"label": f"Käse {i % 3}", "score": 1 / (i + 3), "scores": {"a": math.pi * i}} for i in range(count)]
    found = Answers(made[: count // 2])
    found.extend(iter(made[count // 2 :]))
    assert len(found) == count and list(found) == made == list(found)
    assert found[count // 3 : count // 2] == made[count // 3 : count // 2]
    if count:
        assert found[0] == made[0] and found[-1] == made[-1] and found[count // 2] == made[count // 2]
    with pytest.raises(IndexError):
        found[count]


def test_two_that_go_through_answers_at_once_do_not_disturb_each_other():
    made = [{"n": i} for i in range(3 * AT_ONCE)]
    found = Answers(made)
    assert [(a["n"], b["n"]) for a, b in zip(found, reversed(found), strict=True)] == [
        (i, 3 * AT_ONCE - 1 - i) for i in range(3 * AT_ONCE)
    ]
