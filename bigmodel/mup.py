"""Maximal update parametrisation: the learning rate found on a narrow model is the wide one's.

Yang et al., 2022, Tensor Programs V, https://arxiv.org/abs/2203.03466, in the form of its table 3, which scales initial
weights and steps and multiplies nothing in the forward pass: the model stays the one that transformers knows. With
growth r = width / base width, entries scale as powers of r:

             initial weights   steps   gradients
    input    0                 0       -1          tables, and vectors that grow: biases, norms
    hidden   -1/2              -1      -1          matrices of which both sides grow
    output   -1                -1      0           the classifier's weights
    fixed    0                 0       0           what does not grow: the classifier's bias

Adam's steps do not depend on the size of the gradients, so their power is that of its learning rate, and its eps goes
with the gradients; gradient descent's learning rate is steps / gradients. Weight decay is scaled so that each parameter
shrinks as fast, beside its steps, as at the base width. Heads keep their size and their number grows, so the logits of
attention need no factor (1 / sqrt(d) and 1 / d differ by a constant). At the base width all of it is 1, to the bit.

The gradient's norm, which `optim.clip` limits, grows with the classifier's: Adam hardly minds, gradient descent does.

An architecture joins with a line in FAMILIES. An output table that is tied to the input's would need a factor in the
forward pass: it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bigmodel import models
from bigmodel.errors import ConfigError
from bigmodel.experiment import Experiment, MupConfig
from bigmodel.models.fields import make
from bigmodel.models.init import deviation
from bigmodel.optim import Scale


class Powers(NamedTuple):
    """Of the growth in width."""

    init: float
    step: float
    gradient: float


ROLES = {
    "input": Powers(0, 0, -1),
    "hidden": Powers(-1 / 2, -1, -1),
    "output": Powers(-1, -1, 0),
    "fixed": Powers(0, 0, 0),
}


@dataclass(frozen=True)
class Family:
    """A native architecture: which fields grow with `hidden_size`, and which of its modules begin and end it."""

    grow: tuple[str, ...]
    input: str
    output: tuple[str, ...]

    def role(self, name: str, dim: int) -> str:
        """Of the parameter with this name, such as bert.embeddings.word_embeddings.weight, and so many dimensions."""
        path = name.split(".")
        if not set(self.output).isdisjoint(path):
            return "output" if dim > 1 else "fixed"
        return "input" if self.input in path or dim <= 1 else "hidden"


FAMILIES = {
    "bert": Family(("num_attention_heads", "intermediate_size"), input="embeddings", output=("classifier",)),
    "llama": Family(
        ("num_attention_heads", "num_key_value_heads", "intermediate_size"),
        input="embed_tokens",
        output=("lm_head", "score"),
    ),
}
"""By native model type."""


def apply(experiment: Experiment, model: PreTrainedModel) -> dict[str, Scale]:
    """Scale the initial weights in place. -> what the optimiser multiplies, by parameter; nothing without `mup`."""
    base = experiment.mup.hidden_size
    if base is None:
        return {}
    if refused := refusal(experiment):
        raise ConfigError(refused)
    growth = model.config.hidden_size / base
    family = FAMILIES[model.config.model_type]
    scales = {}
    for name, parameter in model.named_parameters():
        role = family.role(name, parameter.dim())
        scales[name] = step_scale(role, growth, experiment.optim.type)
        if parameter.dim() > 1:
            factor = init_scale(role, growth, experiment.init, parameter.shape, model.config.initializer_range)
            with torch.no_grad():
                parameter.mul_(factor)
    return scales


def init_scale(role: str, growth: float, scheme: str, shape: torch.Size, std: float) -> float:
    """From the weights that the scheme draws for this shape to those it draws at the base width, scaled by the role."""
    rows, columns = shape
    is_table = role == "input"
    base_rows = rows / growth if role == "hidden" else rows
    drawn = deviation(scheme, rows, columns, is_table, std)
    drawn_at_base = deviation(scheme, base_rows, columns / growth, is_table, std)
    return drawn_at_base / drawn * math.pow(growth, ROLES[role].init)


def step_scale(role: str, growth: float, optimizer: str) -> Scale:
    step, gradient = math.pow(growth, ROLES[role].step), math.pow(growth, ROLES[role].gradient)
    if optimizer == "gd":
        return Scale(lr=step / gradient, weight_decay=gradient / step)
    decoupled = optimizer == "adamw"
    return Scale(lr=step, eps=gradient, weight_decay=1 / step if decoupled else gradient / step)


def refusal(experiment: Experiment, width: int | None = None) -> str | None:
    """Why the model cannot be scaled between its own width and this one, `mup.hidden_size`; nothing if it can."""
    width = width or experiment.mup.hidden_size
    if width is None:
        return None
    kind = experiment.model.get("type", "pretrained")
    if kind == "pretrained" or models.resolve(experiment.model, experiment.task)[0] not in FAMILIES:
        known = "model.type transformer, bert or llama"
        return f"mup scales an encoder or decoder that starts from scratch ({known}), and this is {kind}"
    config = _config(experiment)
    if experiment.task == "text-generation" and config.tie_word_embeddings:
        return "mup needs model.tie_word_embeddings=false: one table cannot be scaled both as input and as output"
    own = config.hidden_size
    least = math.lcm(*(own // math.gcd(own, getattr(config, field)) for field in FAMILIES[config.model_type].grow))
    if width % least:
        return (
            f"mup between model.hidden_size {own} and {width}: attention heads and feed-forward layer shrink with the "
            f"width, so it must be a multiple of {least}, such as {least * max(1, round(width / least))}"
        )
    if experiment.optim.type == "gd" and experiment.optim.clip:
        return "mup with optim.type gd needs optim.clip=0: the gradient's norm grows with the width, its limit does not"
    return None


def proxy(experiment: Experiment, fields: Mapping[str, int]) -> Experiment:
    """The same experiment on a narrow model, `{"hidden_size": 64}`: what is found there `widen` takes back."""
    if fields.keys() != {"hidden_size"}:
        raise ConfigError(f"a proxy is narrower and nothing else: {{hidden_size: 64}}, not {dict(fields)}")
    width = fields["hidden_size"]
    if refused := refusal(experiment, width):
        raise ConfigError(refused)
    config = _config(experiment)
    narrow = {field: getattr(config, field) * width // config.hidden_size for field in _shape(config)}
    mup = experiment.mup if experiment.mup.hidden_size else MupConfig(hidden_size=width)
    return experiment.model_copy(update={"model": {**experiment.model, **narrow}, "mup": mup})


def widen(found: Experiment, wide: Experiment) -> Experiment:
    """What was found on a proxy, at the width of the experiment it stood for, and into its folder."""
    shape = _shape(_config(wide))
    model = {name: value for name, value in found.model.items() if name not in shape}
    model |= {name: value for name, value in wide.model.items() if name in shape}
    return found.model_copy(update={"model": model, "tune": wide.tune, "output": wide.output})


def width(experiment: Experiment) -> int:
    """Of the experiment's encoder or decoder."""
    return int(_config(experiment).hidden_size)


def _shape(config: Any) -> tuple[str, ...]:
    return ("hidden_size", *FAMILIES[config.model_type].grow)


def _config(experiment: Experiment) -> Any:
    model_type, fields = models.resolve(experiment.model, experiment.task)
    return make(CONFIG_MAPPING[model_type], fields)
