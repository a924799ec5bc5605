"""Initialisation by a named scheme. The formulas are those of torch.nn.init.

xavier      uniform, variance 2 / (fan_in + fan_out)      Glorot & Bengio, 2010, proceedings.mlr.press/v9/glorot10a
kaiming     normal, variance 2 / fan_in                   He et al., 2015, https://arxiv.org/abs/1502.01852
orthogonal  orthonormal rows or columns                   Saxe et al., 2014, https://arxiv.org/abs/1312.6120
normal      normal, deviation `config.initializer_range`  (0.02 if the config has none), as in BERT
"""

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Fill = Callable[[Tensor, torch.Generator], object]


@torch.no_grad()
def initialize(model: PreTrainedModel, scheme: str, seed: int) -> None:
    """Set the weights of a model in place.

    matrices, kernels  by the scheme; the gates of an LSTM or GRU each by themselves, as they are separate maps
    embeddings         normal with variance 1 / width, so that a token's vector has length 1; under `normal` as the
                       matrices. The scheme's fans say nothing here: a table is looked up, not multiplied. A padding
                       row is 0
    biases             0, but 1 for the forget gate of an LSTM (Gers et al., 2000; Jozefowicz et al., 2015)
    norms              as the architecture made them: weight 1, or 0 where it adds 1 itself
    not trained        as the architecture made them, such as a table of sines
    anything else      matrices normal with `initializer_range`; vectors as the architecture made them

    The numbers follow from the seed and the parameter's name alone: not from torch's global generator, the device, or
    what other parameters there are. Of a model that `build` read from a checkpoint only the fresh parameters are set.
    """
    std = getattr(model.config, "initializer_range", None) or 0.02
    fill = filler(scheme, std)
    fresh = getattr(model, "fresh", None)
    for name, parameter, fills in plan(model, scheme, fill, std):
        if fresh is None or name in fresh:
            generator = torch.Generator().manual_seed(draw_seed(seed, name))
            values = torch.empty(parameter.shape, dtype=torch.float32)
            fills(values, generator)
            parameter.copy_(values)


def filler(scheme: str, std: float) -> Fill:
    fillers: dict[str, Fill] = {
        "xavier": lambda values, generator: nn.init.xavier_uniform_(values, generator=generator),
        "kaiming": lambda values, generator: nn.init.kaiming_normal_(values, generator=generator),
        "orthogonal": lambda values, generator: nn.init.orthogonal_(values, generator=generator),
        "normal": lambda values, generator: nn.init.normal_(values, std=std, generator=generator),
    }
    if scheme not in fillers:
        raise ValueError(f"there is no initialisation scheme '{scheme}'. Schemes: {', '.join(fillers)}")
    return fillers[scheme]


def deviation(scheme: str, rows: float, columns: float, is_table: bool, std: float) -> float:
    """Of the weights that `initialize` draws for a matrix or an embedding table of this shape."""
    if scheme == "normal":
        return std
    if is_table:
        return 1 / math.sqrt(columns)
    variances = {"xavier": 2 / (rows + columns), "kaiming": 2 / columns, "orthogonal": 1 / max(rows, columns)}
    return math.sqrt(variances[scheme])


def plan(model: nn.Module, scheme: str, fill: Fill, std: float) -> Iterator[tuple[str, Tensor, Fill]]:
    """(name, parameter, how to fill it) of each parameter once; those that stay as they are do not appear."""
    seen: set[int] = set()
    at_zero = getattr(model, "starts_at_zero", ())  # modules; an architecture knows its tables of weights from vectors
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:  # tied weights belong to the module that comes
                continue  # first; what is not trained, such as a table of sines, is right as it was made
            seen.add(id(parameter))
            fills = constant(0.0) if path in at_zero else choose(module, name, parameter, scheme, fill, std)
            if fills is not None:
                yield f"{path}.{name}" if path else name, parameter, fills


def choose(module: nn.Module, name: str, parameter: Tensor, scheme: str, fill: Fill, std: float) -> Fill | None:
    if isinstance(module, nn.RNNBase):
        return recurrent(module, name, fill)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return table(module, std if scheme == "normal" else parameter.shape[1] ** -0.5)
    if "Norm" in type(module).__name__:
        return None
    if isinstance(module, Conv1D) and name == "weight":  # stored as (in, out), which exchanges the fans
        return lambda values, generator: fill(values.t(), generator)
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        return fill if name == "weight" else constant(0.0)
    if parameter.dim() > 1:
        return lambda values, generator: nn.init.normal_(values, std=std, generator=generator)
    return constant(0.0) if name == "bias" else None


def recurrent(module: nn.RNNBase, name: str, fill: Fill) -> Fill:
    """Gates stand below each other, in an LSTM in the order input, forget, cell, output; both its biases are added."""
    size = module.hidden_size
    if name.startswith("weight"):
        return lambda values, generator: [fill(gate, generator) for gate in torch.split(values, size)]
    if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):
        return lambda values, generator: values.zero_()[size : 2 * size].fill_(1.0)
    return constant(0.0)


def table(module: nn.Embedding | nn.EmbeddingBag, std: float) -> Fill:
    def fill(values: Tensor, generator: torch.Generator) -> None:
        nn.init.normal_(values, std=std, generator=generator)
        if module.padding_idx is not None:
            values[module.padding_idx] = 0.0

    return fill


def constant(value: float) -> Fill:
    return lambda values, generator: values.fill_(value)


def draw_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big", signed=True)
