"""Gradient descent and Adam, and how the learning rate moves. Imports torch alone.

    build(config, model)            the optimiser of an experiment's `optim:` section
    factor(step, total, ...)        the learning rate of a step, as a fraction of the peak: a pure function, no object
    state_tensors / load_...        the optimiser's state as named tensors, for a checkpoint without pickle
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer


class Config(Protocol):
    """The fields of `bigmodel.experiment.OptimConfig` that are read here."""

    type: Any
    lr: float
    betas: tuple[float, float]
    eps: float
    bias_correction: bool
    weight_decay: float
    momentum: float
    nesterov: bool


class PlainAdam(Optimizer):
    r"""Adam without bias correction: m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  p <- p - lr m / (sqrt(v) + eps).

    Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980, algorithm 1 without its two corrections: the first steps are
    short where b2 > b1^2. `decoupled` takes lr * weight_decay * p from p (Loshchilov & Hutter, 2019,
    https://arxiv.org/abs/1711.05101); otherwise weight_decay * p is added to g.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop computes the loss"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(group, params)

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        m = [self.state[p]["exp_avg"] for p in params]
        v = [self.state[p]["exp_avg_sq"] for p in params]
        if decay and group["decoupled"]:
            torch._foreach_mul_(params, 1 - lr * decay)
        elif decay:
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(v)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(params, m, denominators, -lr)


def build(config: Config, model: torch.nn.Module) -> Optimizer:
    """GD, Adam or AdamW over the model's parameters, in torch's fused form where there is one.

    Weight decay spares vectors: biases, and the gains of normalisation, have no direction to shrink.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.type == "gd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=nesterov, fused=True)
    if not config.bias_correction:
        decoupled = config.type == "adamw"
        return PlainAdam(groups, config.lr, config.betas, config.eps, decoupled=decoupled)
    adam = torch.optim.AdamW if config.type == "adamw" else torch.optim.Adam
    return adam(groups, config.lr, config.betas, config.eps, fused=True)


def factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Of the peak learning rate at `step` (from 0) of `total`: a line up over `warmup` steps, then as the schedule says.

    The cosine is Loshchilov & Hutter, 2017, https://arxiv.org/abs/1608.03983, without restarts; the last step is above 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(total - warmup, 1)
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """`NUMBER.NAME` -> tensor, for every parameter that has been stepped."""
    return {
        f"{i}.{name}": (value if isinstance(value, Tensor) else torch.tensor(float(value))).detach().cpu().contiguous()
        for i, p in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(p, {}).items()
        if value is not None
    }


def load_state_tensors(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take up a state exactly, each tensor on its parameter's device; the count of steps stays where torch wants it."""
    parameters = list(_parameters(optimizer))
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        optimizer.state[parameter][name] = tensor.to(parameter.device, copy=True)


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
