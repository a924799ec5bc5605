"""Gradient descent and Adam on torch's fused kernels, and learning-rate schedules as functions of the step.

p parameter, g gradient, m and v first and second moment, b momentum, t step from 1.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

FOREVER = 2.0**40
"""Adam's corrections 1 - beta^t are exactly 1 at this step, so the same kernel computes the form without them."""


class GD(torch.optim.SGD):
    r"""b <- momentum b + g;  p <- p - lr b, with `nesterov` p <- p - lr (g + momentum b).

    `weight_decay` adds weight_decay * p to g. Nesterov's momentum as in Sutskever et al., 2013,
    https://proceedings.mlr.press/v28/sutskever13.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)


class Adam(Optimizer):
    r"""m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  p <- p - lr * m_hat / (sqrt(v_hat) + eps).

    Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980, algorithm 1: m_hat = m / (1 - b1^t), v_hat = v / (1 - b2^t).
    Without `bias_correction` m_hat = m and v_hat = v: the first steps are then larger by (1-b1) / sqrt(1-b2), about 3
    with the usual betas. `weight_decay` adds weight_decay * p to g.
    """

    decoupled = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            states = [self.moments(p) for p in params]
            steps = [state["step"] for state in states]
            if not group["bias_correction"]:
                for step in steps:
                    step.add_(1)
                steps = [torch.full_like(step, FOREVER) for step in steps]
            adam(
                params,
                [p.grad for p in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                decoupled_weight_decay=self.decoupled,
            )

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """torch's names, so that a state can move between its Adam and ours."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class AdamW(Adam):
    r"""Adam, and p <- p - lr * weight_decay * p apart from the gradient.

    Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101.
    """

    decoupled = True


class Fields(Protocol):
    """The experiment's `optim:` section."""

    @property
    def type(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def bias_correction(self) -> bool: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def nesterov(self) -> bool: ...


@dataclass(frozen=True)
class Scale:
    """What the experiment's values are multiplied by for a parameter."""

    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0


def build(fields: Fields, model: nn.Module, scales: Mapping[str, Scale] | None = None) -> Optimizer:
    """The optimiser of an experiment. Weight decay applies to matrices, kernels and tables, not to biases and norms.

    scales   of the parameters that have one; who sets a group's rate anew multiplies it with the group's `lr_scale`

    Raises ValueError for `nesterov` without `momentum`.
    """
    alike: dict[tuple[bool, Scale], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, p in model.named_parameters():
        if p.requires_grad:
            spared = fields.weight_decay != 0 and p.dim() <= 1
            alike[spared, (scales or {}).get(name, Scale())].append((name, p))
    groups = [
        {
            "params": params,
            "lr": fields.lr * scale.lr,
            "lr_scale": scale.lr,
            "eps": fields.eps * scale.eps,  # gradient descent does not look
            "weight_decay": 0.0 if spared else fields.weight_decay * scale.weight_decay,
        }
        for (spared, scale), params in sorted(alike.items(), key=lambda group: group[0][0])
    ]
    if fields.type == "gd":
        return GD(groups, fields.lr, fields.momentum, nesterov=fields.nesterov)
    adam_class = {"adam": Adam, "adamw": AdamW}[fields.type]
    return adam_class(groups, fields.lr, fields.betas, fields.eps, bias_correction=fields.bias_correction)


def factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """What the learning rate of `step` (from 0) is multiplied by.

    It rises in a line over `warmup` steps, 1 being reached in the last of them; then it stays (constant), falls in a
    line (linear) or along half a cosine (Loshchilov & Hutter, 2017, arXiv:1608.03983), to 0 just after the last of
    `total` steps.
    """
    if step < warmup:
        return (step + 1) / warmup
    gone = min(1.0, (step - warmup) / max(1, total - warmup))
    return {"constant": 1.0, "linear": 1.0 - gone, "cosine": (1.0 + math.cos(math.pi * gone)) / 2}[schedule]


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state as `parameter/entry` -> tensor, no copies; empty before the first step.

    With the parameters and the schedule's step this is everything: a run continues to the last bit.
    """
    return {
        f"{name}/{entry}": value.detach()
        for name, parameter in _named(optimizer)
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` took. KeyError for a parameter that the optimiser does not have."""
    parameters = dict(_named(optimizer))
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        optimizer.state[parameters[name]][entry] = value.to(parameters[name].device, copy=True)


def _named(optimizer: Optimizer) -> Iterable[tuple[str, Any]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
