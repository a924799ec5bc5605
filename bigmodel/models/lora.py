"""LoRA of a pretrained model, by peft: its weights stay, beside each of its maps a product of two thin ones is learnt.

Hu et al., 2022, https://arxiv.org/abs/2106.09685: y = W x + (alpha / rank) B A x, B from 0. What is saved is A, B and
the parts that no checkpoint had, such as the head; the base is named, and its weights' digests are kept.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.generation.configuration_utils import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.pytorch_utils import Conv1D

from bigmodel.errors import did_you_mean
from bigmodel.models import pretrained
from bigmodel.models.fields import ModelError, Problem, root_message

CONFIG, WEIGHTS = pretrained.ADAPTER, "adapter_model.safetensors"


@dataclass(frozen=True)
class Settings:
    """`model.lora` of an experiment."""

    rank: int = 8
    """Width of the two thin maps."""
    alpha: int = 16
    """What they add counts alpha / rank times."""
    dropout: float = 0.0
    """Of what goes into them."""
    targets: Sequence[str] = ()
    """Last parts of the names of the maps that are adapted, such as q_proj; none is all of them but the head."""
    merge: bool = False
    """The model directory holds whole weights, not the adapter alone."""


MUST_BE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rank": ("a whole number above 0", lambda value: type(value) is int and value > 0),
    "alpha": ("a whole number above 0", lambda value: type(value) is int and value > 0),
    "dropout": ("a number from 0 to below 1", lambda value: type(value) in (int, float) and 0 <= value < 1),
    "targets": ("a list of words", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)),
    "merge": ("true or false", lambda value: type(value) is bool),
}


def problems(model: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with `model.lora`, before a weight is read."""
    section = model["lora"]
    if "pretrained" not in model:
        return [("lora", f"model.lora adapts a checkpoint (model.pretrained); type {model.get('type')} has none")]
    if not isinstance(section, dict):
        return [("lora", f"model.lora is {section!r}, but must be a section, such as {{rank: 8}}")]
    wrong = []
    for name, value in section.items():
        if name not in MUST_BE:
            hint = did_you_mean(str(name), MUST_BE)
            wrong.append(f"model.lora has no field '{name}'.{hint} Fields: {', '.join(MUST_BE)}")
        elif not MUST_BE[name][1](value):
            wrong.append(f"model.lora.{name} is {value!r}, but must be {MUST_BE[name][0]}")
    if not wrong and importlib.util.find_spec("peft") is None:
        wrong.append("model.lora needs peft: pip install peft")
    return [("lora", message) for message in wrong]


def adapt(model: Any, settings: Settings, seed: int) -> None:
    """Put the thin maps into the model, in place; from now on they and its fresh parts alone are trained.

    Its random numbers follow from the seed. Raises ModelError where nothing is called as the targets say, and for a
    model whose batch norms would learn what an adapter cannot hold.
    """
    import peft

    heads = _modules_of(model, model.fresh | model.head)
    logits = model.get_output_embeddings()
    maps = [
        name
        for name, module in model.named_modules()
        if _is_map(module) and module is not logits and not _within(name, heads)
    ]
    named = [name for name in maps if not settings.targets or name.rpartition(".")[2] in settings.targets]
    if not maps:
        raise ModelError(f"model.lora: a {model.config.model_type} has no linear maps that it could adapt")
    if not named:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in maps}))
        raise ModelError(f"model.lora.targets: nothing here is called {' or '.join(settings.targets)}. Maps: {there}")
    if not settings.merge and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ModelError(
            f"model.lora: a {model.config.model_type} has batch norms, whose averages an adapter cannot hold. Set "
            "model.lora.merge: true, which saves whole weights"
        )
    model.name_or_path = _lasting(model.name_or_path)  # which peft writes down
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=named,
        modules_to_save=heads or None,
    )
    with torch.random.fork_rng(), _without_warnings():
        torch.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, config)
        except ValueError as e:
            raise ModelError(f"model.lora: {root_message(e)}") from None
    model.adapted = (adapted, settings)  # in a tuple: a module inside itself has no end


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Peft asks transformers for what is about to be renamed, and says what it mends by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _lasting(source: str) -> str:
    """A directory's path from wherever it is opened."""
    folder = Path(source)
    return str(folder.absolute()) if folder.is_dir() else source


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D, nn.Conv2d))


def _within(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _modules_of(model: PreTrainedModel, parameters: frozenset[str]) -> list[str]:
    """The modules of parameters that are trained as they are, such as the head; of modules within modules the
    outermost."""
    names: list[str] = []
    for name, module in model.named_modules():
        inside = [f"{name}.{p}" for p, _ in module.named_parameters()]
        if name and inside and parameters.issuperset(inside) and not _within(name, names):
            names.append(name)
    return names


def is_adapted(model: nn.Module) -> bool:
    return hasattr(model, "adapted")


def save(model: Any, folder: Path) -> PreTrainedModel:
    """Write the adapter as peft does, or where `merge` is set whole weights with the adapter in a folder of theirs.
    -> the merged model.

    Merged, with W + (alpha / rank) B A in the place of W, it is as quick as its base was.
    """
    adapted, settings = model.adapted
    adapter = folder / "adapter" if settings.merge else folder
    adapted.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # peft's own, a form to be filled in
    del model.adapted
    whole: PreTrainedModel = adapted.merge_and_unload()
    if settings.merge:
        whole.save_pretrained(folder)
    else:
        whole.config.save_pretrained(folder)
        if whole.can_generate():
            whole.generation_config.save_pretrained(folder)
    return whole


def base_of(folder: Path) -> Path | None:
    """The directory of the adapter's base; None of a name on the hub, and where there is no adapter."""
    if not is_adapter(folder):
        return None
    base = Path(pretrained.locate(json.loads((folder / CONFIG).read_text("utf-8"))["base_model_name_or_path"] or ""))
    return base if base.is_dir() else None


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def load(folder: Path, auto_class: Any) -> PreTrainedModel:
    """The merged model of an adapter's folder. OSError or ValueError where it, or its base, cannot be opened."""
    try:
        import peft
    except ImportError:
        raise ValueError("it is a LoRA adapter, which needs peft: pip install peft") from None

    stored = json.loads((folder / CONFIG).read_text("utf-8"))
    base = stored.get("base_model_name_or_path")
    if not base or stored.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG} is not of a LoRA adapter that names its base")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"it has no {WEIGHTS}; other formats are not read")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(f"the model it adapts is not at {base} any more")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model, missing, mismatched = pretrained.open_weights(base, auto_class, config)
    if lacking := sorted(
        name for name in missing | mismatched if not _within(name, stored.get("modules_to_save") or [])
    ):
        raise ValueError(f"its base {base} has not the weights it was trained with: {', '.join(lacking[:3])}")
    try:
        with _without_warnings():
            whole: PreTrainedModel = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as e:  # peft says it in many ways
        raise ValueError(f"the adapter does not fit its base {base}: {root_message(e)}") from None
    whole.config.name_or_path = str(folder)
    if whole.can_generate() and (folder / "generation_config.json").is_file():  # its base's may say otherwise
        whole.generation_config = GenerationConfig.from_pretrained(folder)
    return whole
