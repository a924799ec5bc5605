"""Models from a checkpoint, a Hugging Face directory or a name on the hub: safetensors only, no foreign code."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig

from bigmodel.models.fields import fit, root_message


def read_config(source: str) -> PreTrainedConfig:
    """The config of a directory or hub name; ValueError with a message for the user where there is none."""
    path = locate(source)
    folder = Path(path)
    if not folder.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ValueError(f"model.pretrained: there is no directory {source}")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ValueError(f"model.pretrained: {source} holds no weights (*.safetensors; other formats are not read)")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise ValueError(f"model.pretrained: {source} cannot be opened: {root_message(e)}") from None
    return config


def load(
    source: str, auto_class: Any, fields: Mapping[str, Any], labels: Mapping[str, Any], vocab_size: int
) -> PreTrainedModel:
    """The model of a checkpoint in fp32, with config `fields` changed and the data's `labels` (id2label, label2id).

    The attribute `fresh` of the result names the parameters that do not come from the checkpoint: its head, unless that
    was trained for the same labels. Raises ValueError where a field changes the shape of other weights, and where a
    tokenizer of `vocab_size` knows more tokens than the model.
    """
    config = read_config(source)
    known_labels = config.id2label
    known_tokens = config.get_text_config().vocab_size
    if vocab_size > known_tokens:
        raise ValueError(f"model.pretrained: the tokenizer has {vocab_size} tokens, but {source} knows {known_tokens}")
    for name, value in {**fields, **labels}.items():
        setattr(config, name, fit(type(config), config.attribute_map.get(name, name), value))

    try:
        model, info = auto_class.from_pretrained(
            locate(source), config=config, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError) as e:
        raise ValueError(f"model.pretrained: {source} cannot be opened: {root_message(e)}") from None

    head = label_shaped(auto_class, config)
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    if mismatched - head:
        raise ValueError(
            f"model: {', '.join(fields)} do not fit the weights of {source}: {sorted(mismatched - head)[0]}"
        )
    fresh = set(info["missing_keys"]) | mismatched
    model.fresh = frozenset(fresh if config.id2label == known_labels else fresh | head)
    return model  # type: ignore[no-any-return]


def label_shaped(auto_class: Any, config: PreTrainedConfig) -> set[str]:
    """The parameters whose shape follows from the number of labels."""
    wider = copy.deepcopy(config)
    wider.num_labels = len(config.id2label or {}) + 1
    with torch.device("meta"):
        shapes, others = (
            {name: parameter.shape for name, parameter in auto_class.from_config(c).named_parameters()}
            for c in (config, wider)
        )
    return {name for name, shape in shapes.items() if others[name] != shape}


def locate(source: str) -> str:
    folder = Path(source).expanduser()
    return str(folder) if folder.is_dir() else source
