"""Models from a checkpoint, a Hugging Face directory or a name on the hub: safetensors only, no foreign code."""

import copy
import difflib
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.utils import logging

from bigmodel.models.fields import ModelError, Problem, fit, root_message

Shapes = dict[str, torch.Size]
LANGUAGES = ("src_lang", "tgt_lang")  # of the tokenizer of a translation model of many languages, by its own codes
ADAPTER = "adapter_config.json"  # of peft: a folder with it holds no whole weights


def read_config(source: str) -> PreTrainedConfig:
    """The config of a directory or hub name; ModelError where there is none, or no weights beside it."""
    path = locate(source)
    folder = Path(path)
    here = source != "" and folder.is_dir()
    if not here and (problem := _path_problem(source)):
        raise ModelError(f"model.pretrained: {problem}")
    if here and (folder / ADAPTER).is_file() and not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"model.pretrained: {source} is a LoRA adapter without its base: train it with model.lora.merge: true"
        )
    if here and not any(folder.glob("*.safetensors")):
        hint = f". Did you mean {source.rstrip('/')}/model?" if (folder / "model" / "config.json").is_file() else ""
        raise ModelError(
            f"model.pretrained: {source} holds no weights (*.safetensors; other formats are not read){hint}"
        )
    try:
        stored, _ = PreTrainedConfig.get_config_dict(path)
        model_type = stored.get("model_type")
        config: PreTrainedConfig | None = None
        if model_type in CONFIG_MAPPING:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as e:  # whatever a damaged file makes of it
        what = f"{source} cannot be opened" if here else f"'{source}' is no directory here, and no hub name to be had"
        raise ModelError(f"model.pretrained: {what}: {root_message(e)}") from None
    if config is None:
        raise ModelError(
            f"model.pretrained: {source} is of the type '{model_type}', which transformers does not have; "
            "code that comes with a checkpoint is not run"
        )
    return config


def _path_problem(source: str) -> str | None:
    """Why a source that is no directory is no name on the hub (owner/name) either; None if it may be one."""
    parent = Path(source).parent
    beside = "/" in source and parent.is_dir()
    if source and source[0] not in "./~" and source.count("/") <= 1 and not beside:
        return None
    there = [path.name for path in parent.glob("*/")] if beside else []
    if close := difflib.get_close_matches(Path(source).name, there, n=1):
        return f"there is no directory '{source}'. Did you mean {parent / close[0]}?"
    why = f". It is not looked for on the hub, as there is a folder '{parent}' here" if source[:1] not in "./~" else ""
    return f"there is no directory '{source}'{why if beside else ''}"


def load(source: str, auto_class: Any, fields: Mapping[str, Any], learnt: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a checkpoint in fp32, with config `fields` changed, for the labels and the tokenizer of `learnt`.

    Of the result, `head` names the parameters shaped by the labels, `fresh` those that do not come from the checkpoint:
    the head, unless it was trained for the same labels. Raises ModelError where the tokenizer knows more tokens than
    the model, and where the weights cannot be read.
    """
    config = read_config(source)
    known_labels = config.id2label
    if "vocab_size" in learnt and learnt["vocab_size"] > (known_tokens := config.get_text_config().vocab_size):
        raise ModelError(
            f"model.pretrained: {source}: its tokenizer has {learnt['vocab_size']:,} tokens, its model {known_tokens:,}"
        )
    config = changed(config, {**fields, **_taught(learnt)})
    try:
        model, missing, mismatched = open_weights(source, auto_class, config)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as e:
        raise ModelError(f"model.pretrained: {source} cannot be opened: {root_message(e)}") from None

    head = label_shaped(auto_class, config)
    if mismatched - head:
        raise ModelError(f"model.pretrained: {source}: its weights are not those that its config.json describes")
    fresh = missing | mismatched
    if "generation" in learnt:
        model.generation_config.update(**learnt["generation"])
    model.fresh = frozenset(fresh if config.id2label == known_labels else fresh | head)
    model.head = frozenset(head)
    return model  # type: ignore[no-any-return]


def open_weights(source: str, auto_class: Any, config: PreTrainedConfig) -> tuple[Any, set[str], set[str]]:
    """The model of a config in fp32 with the weights of a checkpoint, the parameters that are missing there, and those
    that have another shape; both are drawn at random. Raises whatever a damaged file makes of it."""
    with quiet():
        model, info = auto_class.from_pretrained(
            locate(source), config=config, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    return model, set(info["missing_keys"]), {entry[0] for entry in info["mismatched_keys"]}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the report of what a checkpoint lacks: a new head is what was asked for."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _taught(learnt: Mapping[str, Any]) -> dict[str, Any]:
    """The data's labels, the tokenizer's padding and start. What labels meant before, such as a regression, goes with
    them."""
    names = ("id2label", "label2id", "pad_token_id", "decoder_start_token_id")
    taught = {name: learnt[name] for name in names if name in learnt}
    return taught | ({"problem_type": None} if "id2label" in learnt else {})


def changed(config: PreTrainedConfig, values: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy of the config with other values."""
    config = copy.deepcopy(config)
    for name, value in values.items():
        own = config.attribute_map.get(name, name)
        setattr(config, own, fit(type(config), own, value))
    return config


def reshaping_problems(source: str, auto_class: Any, fields: Mapping[str, Any]) -> list[Problem]:
    """Fields that would need other weights than the checkpoint has."""
    problems: list[Problem] = []
    config = read_config(source)
    for key, value in fields.items():
        try:
            fits = shapes(auto_class, changed(config, {key: value})) == shapes(auto_class, config)
        except Exception as e:
            problems.append((key, f"model.{key} {value!r} does not go with {source}: {root_message(e)}"))
            continue
        if not fits:
            has = getattr(config, key)
            problems.append((key, f"model.{key} {value!r} does not fit the weights of {source}, made with {has!r}"))
    return problems


def label_shaped(auto_class: Any, config: PreTrainedConfig) -> set[str]:
    """The parameters whose shape follows from the number of labels."""
    wider = copy.deepcopy(config)
    wider.num_labels = len(config.id2label or {}) + 1
    others = shapes(auto_class, wider)
    return {name for name, shape in shapes(auto_class, config).items() if others[name] != shape}


def shapes(auto_class: Any, config: PreTrainedConfig) -> Shapes:
    """Of every parameter, without memory for one."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in auto_class.from_config(config).named_parameters()}


def file_digest(source: str, name: str) -> str | None:
    """SHA-256 of a file of the checkpoint; None of one on the hub, or without such a file."""
    file = Path(locate(source), name)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def locate(source: str) -> str:
    folder = Path(source).expanduser()
    return str(folder) if folder.is_dir() else source
