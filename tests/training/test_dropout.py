"""Dropout with bits drawn in bulk is dropout."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bigmodel.training.dropout import BulkDropout


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_and_the_mean_are_those_asked_for(p, dtype):
    x = torch.ones(1_000, 1_000, dtype=dtype)
    with BulkDropout(1):
        out = functional.dropout(x, p)
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    assert out.float().mean().item() == pytest.approx(1, rel=0.01)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=0.01)


def test_every_element_is_drawn_for_itself():
    with BulkDropout(2):
        out = functional.dropout(torch.ones(400, 1_000), 0.5) != 0
    rates = torch.cat([out.float().mean(0), out.float().mean(1)])
    assert (rates - 0.5).abs().max() < 0.15
    neighbours = (out[:, 1:] == out[:, :-1]).float().mean()
    assert neighbours.item() == pytest.approx(0.5, abs=0.005)


def test_the_gradient_goes_where_the_value_went():
    x = torch.randn(50, 50, requires_grad=True)
    with BulkDropout(3):
        out = functional.dropout(x, 0.3)
    out.sum().backward()
    torch.testing.assert_close(x.grad, (out != 0).float() / (1 - round(0.3 * 65536) / 65536))


def test_the_bits_follow_from_the_seeds_alone():
    def draw(*seeds: int, threads: int = 1) -> torch.Tensor:
        torch.manual_seed(len(seeds))
        torch.rand(7)
        before, _ = torch.get_num_threads(), torch.set_num_threads(threads)
        with BulkDropout(*seeds):
            out = torch.stack([functional.dropout(torch.ones(3, 333), 0.4) for _ in range(2)])
        torch.set_num_threads(before)
        return out

    assert torch.equal(draw(0, 5, 1), draw(0, 5, 1, threads=2))
    assert not torch.equal(draw(0, 5, 1), draw(0, 5, 2))
    assert not torch.equal(draw(0, 5, 1)[0], draw(0, 5, 1)[1])


def test_without_training_or_rate_nothing_changes():
    x = torch.randn(9, 9)
    with BulkDropout(4):
        assert functional.dropout(x, 0.5, training=False) is x
        assert functional.dropout(x, 0.0) is x
        assert nn.Dropout(0.5).eval()(x) is x


def test_a_module_uses_it_inside_and_torchs_own_outside():
    module, x = nn.Dropout(0.5), torch.ones(1_000)
    with BulkDropout(5):
        first = module(x)
    with BulkDropout(5):
        assert torch.equal(module(x), first)
    torch.manual_seed(0)
    assert not torch.equal(module(x), first)


def test_afterwards_torch_drops_again():
    usual = functional.dropout
    with pytest.raises(ZeroDivisionError), BulkDropout(5):
        assert functional.dropout is not usual
        raise ZeroDivisionError
    assert functional.dropout is usual
