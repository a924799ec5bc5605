"""Our optimisers against torch's and against the formulas written out; schedules; the state."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigmodel import optim
from bigmodel.optim import GD, Adam, AdamW, factor

START = {"weight": torch.linspace(-1, 1, 12).reshape(3, 4), "bias": torch.linspace(2, 1, 3)}


@dataclass(frozen=True)
class Fields:
    """As the experiment's optim section."""

    type: str = "adam"
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    bias_correction: bool = True
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False


def layer() -> nn.Linear:
    linear = nn.Linear(4, 3)
    linear.load_state_dict(START)
    return linear


def gradient(parameter: Tensor, step: int) -> Tensor:
    return torch.sin(parameter * 3 + step) + (parameter if step % 2 else 0)


def descend(optimizer_class: Any, steps: int = 20, **options: Any) -> list[Tensor]:
    linear = layer()
    optimizer = optimizer_class(linear.parameters(), **options)
    for step in range(steps):
        take_step(optimizer, linear, step)
    return [p.detach().clone() for p in linear.parameters()]


def take_step(optimizer: Any, linear: nn.Linear, step: int) -> None:
    for p in linear.parameters():
        p.grad = gradient(p.detach(), step)
    optimizer.step()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.99, 0.99), (0.9, 0.0)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("ours", "theirs"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_adam_agrees_with_torch(ours: Any, theirs: Any, weight_decay: float, betas: tuple[float, float]) -> None:
    options = {"lr": 0.03, "betas": betas, "weight_decay": weight_decay}
    found, wanted = descend(ours, **options), descend(theirs, foreach=False, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.999, 0.99999)])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_adam_without_bias_correction_is_the_textbook_form(betas: tuple[float, float], eps: float) -> None:
    found = descend(Adam, lr=0.03, betas=betas, eps=eps, bias_correction=False)
    for p, start in zip(found, START.values(), strict=True):
        wanted, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
        for step in range(20):
            g = gradient(wanted, step)
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            wanted = wanted - 0.03 * m / (v.sqrt() + eps)
        torch.testing.assert_close(p.double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_first_step_without_correction_is_larger_by_the_known_ratio() -> None:
    def first(bias_correction: bool) -> Tensor:
        return descend(Adam, steps=1, lr=1e-3, eps=1e-12, bias_correction=bias_correction)[0] - START["weight"]

    ratio = (1 - 0.9) / math.sqrt(1 - 0.999)
    torch.testing.assert_close(first(False), first(True) * ratio, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_gradient_descent_agrees_with_the_formula(momentum: float, nesterov: bool, weight_decay: float) -> None:
    found = descend(GD, lr=0.03, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    for p, start in zip(found, START.values(), strict=True):
        wanted, b = start.double(), torch.zeros_like(start).double()
        for step in range(20):
            g = gradient(wanted, step) + weight_decay * wanted
            b = momentum * b + g
            wanted = wanted - 0.03 * (g + momentum * b if nesterov else b)
        torch.testing.assert_close(p.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gd", "adam", "adamw"])
def test_weight_decay_leaves_biases_alone(kind: str) -> None:
    linear = layer()
    optimizer = optim.build(Fields(type=kind, weight_decay=0.5), linear)
    for p in linear.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(linear.bias, START["bias"], rtol=0, atol=0)
    assert linear.weight.abs().sum() < START["weight"].abs().sum()


def test_frozen_parameters_are_left_out() -> None:
    linear = layer()
    linear.weight.requires_grad_(False)
    optimizer = optim.build(Fields(), linear)
    assert [group["param_names"] for group in optimizer.param_groups] == [["bias"]]


def test_a_parameter_without_a_gradient_stays() -> None:
    linear = layer()
    optimizer = optim.build(Fields(bias_correction=False), linear)
    optimizer.step()
    linear.bias.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(linear.weight, START["weight"], rtol=0, atol=0)
    assert (linear.bias < START["bias"]).all()


@pytest.mark.parametrize(
    "fields",
    [
        Fields(),
        Fields(bias_correction=False, weight_decay=0.1),
        Fields(type="adamw", weight_decay=0.1),
        Fields(type="gd"),
        Fields(type="gd", momentum=0.9, nesterov=True),
    ],
)
def test_a_run_continues_from_its_tensors_to_the_last_bit(fields: Fields) -> None:
    whole, first, second = layer(), layer(), layer()
    optimizer = optim.build(fields, whole)
    for step in range(9):
        take_step(optimizer, whole, step)

    optimizer = optim.build(fields, first)
    for step in range(4):
        take_step(optimizer, first, step)
    tensors = {name: tensor.clone() for name, tensor in optim.state_tensors(optimizer).items()}
    second.load_state_dict(first.state_dict())
    optimizer = optim.build(fields, second)
    optim.load_state_tensors(optimizer, tensors)
    for step in range(4, 9):
        take_step(optimizer, second, step)

    assert torch.equal(whole.weight, second.weight)
    assert torch.equal(whole.bias, second.bias)


def test_the_state_is_named_after_the_parameters() -> None:
    linear = layer()
    optimizer = optim.build(Fields(), linear)
    assert optim.state_tensors(optimizer) == {}
    take_step(optimizer, linear, 0)
    entries = ("step", "exp_avg", "exp_avg_sq")
    assert set(optim.state_tensors(optimizer)) == {f"{p}/{entry}" for p in ("weight", "bias") for entry in entries}


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        optim.build(Fields(type="gd", nesterov=True), layer())


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 0.1),
        ("constant", 9, 1.0),
        ("constant", 10, 1.0),
        ("constant", 109, 1.0),
        ("linear", 4, 0.5),
        ("linear", 10, 1.0),
        ("linear", 60, 0.5),
        ("linear", 110, 0.0),
        ("cosine", 10, 1.0),
        ("cosine", 60, 0.5),
        ("cosine", 35, (1 + math.sqrt(0.5)) / 2),
        ("cosine", 200, 0.0),
    ],
)
def test_the_schedule_warms_up_and_falls(schedule: str, step: int, expected: float) -> None:
    assert factor(step, total=110, warmup=10, schedule=schedule) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_every_step_of_a_run_moves(schedule: str, warmup: int) -> None:
    assert all(0 < factor(step, 7, warmup, schedule) <= 1 for step in range(7))
