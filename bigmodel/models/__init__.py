"""Every model is a `transformers.PreTrainedModel`; importing this package makes ours known to the Auto classes.

    build(model, learnt, task)   the `model:` section of an experiment and what the data taught -> the model
    problems(model, task)        what is wrong with that section, before any weight exists
    reads(source)                the most tokens of a text that a checkpoint can read
    init.initialize              the weights that do not come from a checkpoint
    lora.adapt                   a pretrained model with thin maps beside its own, which alone are trained

A new architecture is one file, its import here and its name in OURS.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor

from bigmodel.errors import did_you_mean
from bigmodel.models import lora, positions, pretrained
from bigmodel.models.cnn import CNNForImageClassification
from bigmodel.models.decoder import decoder_defaults
from bigmodel.models.fields import (
    ModelError,
    Problem,
    divisibility_problem,
    field_problems,
    make,
    own_fields,
    root_message,
)
from bigmodel.models.rnn import GRUForSequenceClassification, LSTMForSequenceClassification
from bigmodel.models.rnn_lm import GRUForCausalLM, LSTMForCausalLM
from bigmodel.models.rnn_seq2seq import RNNForSeq2SeqLM
from bigmodel.models.small_images import resnet_defaults, vit_defaults
from bigmodel.models.table_processor import TableProcessor
from bigmodel.models.tabular import FTTransformerModel, TabularMLPModel, TabularModel
from bigmodel.models.textcnn import TextCNNForSequenceClassification
from bigmodel.models.transformer import encoder_defaults, translator_defaults


def _config_of(model: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    assert model.config_class is not None, f"{model.__name__} names no config class"
    return model.config_class


OURS: tuple[type[PreTrainedModel], ...] = (
    LSTMForSequenceClassification,
    GRUForSequenceClassification,
    TextCNNForSequenceClassification,
    LSTMForCausalLM,
    GRUForCausalLM,
    CNNForImageClassification,
    TabularMLPModel,
    FTTransformerModel,
    RNNForSeq2SeqLM,
)
Default = tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]
DEFAULTS: dict[str, dict[str, Default]] = {
    "text-classification": {"transformer": ("bert", encoder_defaults)},
    "translation": {"transformer": ("marian", translator_defaults)},
    "text-generation": {"transformer": ("llama", decoder_defaults)},
    "image-classification": {"resnet": ("resnet", resnet_defaults), "vit": ("vit", vit_defaults)},
}
"""By task, our names for a native model type with other defaults; they are functions of the fields that are given."""

EXAMPLE: dict[str, Any] = {
    "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_length": 64,
    "decoder_vocab_size": 64, "decoder_start_token_id": 2, "forced_eos_token_id": 3,
    "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1},
    "num_channels": 3,
    "bins": [[0.0, 1.0, 2.0], [0.0, 1.0]], "cardinalities": [3, 4],
}  # fmt: skip
"""What data may teach; to build a model for its shapes alone."""

AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "translation": "AutoModelForSeq2SeqLM",
    "text-generation": "AutoModelForCausalLM",
    "tabular-classification": "AutoModel",  # transformers has no class for tables
    "tabular-regression": "AutoModel",
}

START = "decoder_start_token_id"
BESIDE = ("pretrained", "lora", *pretrained.LANGUAGES)
"""What of a section with `pretrained` is no field of the config."""
PADDING_SHOWS = {"canine", "convbert", "fnet", "funnel", "nystromformer", "xlnet", "yoso"}
"""Types of transformers that answer otherwise when a text is padded: what is asked beside it would change an answer."""

SEES_AHEAD = [("is_decoder", False), ("causal", False), ("use_bidirectional_attention", True)]
"""Fields, and the values by which the places of a text see those after them, as in an encoder."""
SEE_AHEAD, SEE_BACK = {"cpmant"}, {"gpt_neox", "gpt_neox_japanese"}
"""Types of transformers that do, and that do not, whatever these fields say."""


def auto_class(task: str) -> Any:
    """The Auto class that opens a task's checkpoints."""
    return getattr(transformers, AUTO_CLASSES[task])


def architectures(task: str) -> list[str]:
    """Our names for what can do a task: a model type of transformers can be named besides."""
    supported = _supported(task)
    own = [_config_of(model) for model in OURS]
    return [*(config.model_type for config in own if config in supported), *DEFAULTS.get(task, {})]


def _supported(task: str) -> Any:
    """Config class -> model class, of what can do the task. AutoModel opens anything: of that, ours for tables."""
    if AUTO_CLASSES[task] != "AutoModel":
        return auto_class(task)._model_mapping
    return {_config_of(model): model for model in OURS if issubclass(model, TabularModel)}


def register(model: type[PreTrainedModel]) -> None:
    """Make a model of ours known to AutoConfig and its Auto class, and let its source travel with what it saves."""
    _, forms, purpose = model.__name__.partition("For")
    auto = f"AutoModel{forms}{purpose}"
    config = _config_of(model)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    getattr(transformers, auto).register(config, model, exist_ok=True)
    config.register_for_auto_class()
    model.register_for_auto_class(auto)


def register_tables(model: type[PreTrainedModel]) -> None:
    """Let AutoFeatureExtractor open the processor of a model for tables, and its source travel with what it saves."""
    AutoFeatureExtractor.register(_config_of(model), TableProcessor, exist_ok=True)
    TableProcessor.register_for_auto_class()  # type: ignore[no-untyped-call]


for _model in OURS:
    register(_model)
    if issubclass(_model, TabularModel):
        register_tables(_model)


def is_ours(model: Mapping[str, Any]) -> bool:
    """Whether the section names an architecture of this package, which wants no special tokens around a text."""
    return model.get("type") in {_config_of(own).model_type for own in OURS}


def uses_all(model: Mapping[str, Any], task: str) -> bool:
    """Whether it is known of the section's model that each loss reaches all its parameters. Others may hold some that
    they never use, or leave out layers by chance."""
    asked = any(value is True or "layerdrop" in name for name, value in model.items())  # for more than the usual parts
    return is_ours(model) or (model.get("type") in DEFAULTS.get(task, {}) and not asked)


def build(model: Mapping[str, Any], learnt: Mapping[str, Any], task: str) -> PreTrainedModel:
    """The model that an experiment's section and the training data describe, in fp32 on the CPU.

    model   `type` or `pretrained` and the fields of the config, without `problems`; `lora` is for `lora.adapt`, and
            `src_lang` and `tgt_lang` are for the tokenizer
    learnt  vocab_size, pad_token_id, bos_token_id, eos_token_id, id2label, label2id, max_length, as the task has them
    task    such as text-classification

    From scratch the weights are what torch and transformers draw: call `init.initialize`. Raises ModelError where a
    pretrained model cannot be loaded or does not fit.
    """
    if "pretrained" in model:
        fields = {name: value for name, value in model.items() if name not in BESIDE}
        return pretrained.load(model["pretrained"], auto_class(task), fields, learnt)
    model_type, fields = resolve(model, task, learnt)
    config_class = CONFIG_MAPPING[model_type]
    config = make(config_class, {**_taught(config_class, learnt), **fields})
    return auto_class(task).from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]


def problems(model: Mapping[str, Any], task: str) -> list[Problem]:
    """(key, message) of every mistake in an experiment's `model:` section: one for a key of the section each."""
    if ("type" in model) == ("pretrained" in model):
        found, known = "both" if "type" in model else "neither", ", ".join(architectures(task))
        return [("type", f"model needs either type or pretrained; found {found}. Types: {known}")]
    key = "type" if "type" in model else "pretrained"
    if not isinstance(model[key], str):
        return [(key, f"model.{key} is {model[key]!r}, but must be a word")]
    try:
        config_class = _config_class(model[key], task) if key == "type" else _pretrained_config(model[key], task)
    except ModelError as e:
        return [(key, str(e))]
    problems = lora.problems(model) if "lora" in model else []
    languages = pretrained.LANGUAGES if key == "pretrained" and task == "translation" else ()
    for name in languages:
        if not isinstance(model.get(name, ""), str):
            problems.append((name, f"model.{name} is {model[name]!r}, but must be a word"))
    fields = {name: value for name, value in model.items() if name not in (key, "lora", *languages)}
    if problems := field_problems(config_class, fields, ["lora", *languages] if key == "pretrained" else []) + problems:
        return problems
    if key == "type":
        return _together_problems(model, task)
    if problems := pretrained.reshaping_problems(model[key], auto_class(task), fields):
        return problems
    reason = _why_not(model, task)
    return [(key, f"model.pretrained: {model[key]} cannot be used: {reason}")] if reason else []


def sees_ahead(config: PreTrainedConfig) -> str:
    """Why a model with this config cannot write what comes next: it has seen it. Nothing of one that can."""
    names = {} if config.model_type in SEE_BACK else own_fields(type(config))
    fields = [f" ({name} is {value})" for name, value in SEES_AHEAD if name in names and getattr(config, name) == value]
    if not fields and config.model_type not in SEE_AHEAD:
        return ""
    return f"it sees the tokens that it is to predict, as an encoder does{''.join(fields)}"


def reads(source: str) -> int | None:
    """The most tokens of a text that the checkpoint `source` can read; None where there is no limit."""
    return positions.max_tokens(pretrained.read_config(source))


def resolve(model: Mapping[str, Any], task: str, learnt: Mapping[str, Any] = EXAMPLE) -> tuple[str, dict[str, Any]]:
    """The native model type and the fields, our defaults included."""
    fields = {name: value for name, value in model.items() if name != "type"}
    known = DEFAULTS.get(task, {})
    if model["type"] not in known:
        return model["type"], fields
    model_type, defaults = known[model["type"]]
    return model_type, {**defaults({"image_size": learnt.get("image_size"), **fields}), **fields}


def _taught(config_class: type[PreTrainedConfig], learnt: Mapping[str, Any]) -> dict[str, Any]:
    """What the data taught, as far as the architecture has a field for it, or reads one that it has not."""
    taught = {name: value for name, value in learnt.items() if name != "max_length"}
    if "max_length" in learnt:
        rows = positions.table_size(config_class.model_type, learnt["max_length"], learnt["pad_token_id"])
        taught["max_position_embeddings"] = rows
    names = own_fields(config_class) | set(config_class.attribute_map) | {"id2label", "label2id", "problem_type"}
    if config_class.is_encoder_decoder and START not in names:
        # T5's: read all the same, and its texts begin with padding
        taught.setdefault(START, taught["pad_token_id"])
        names.add(START)
    return {name: value for name, value in taught.items() if name in names}


def _config_class(name: str, task: str) -> type[PreTrainedConfig]:
    """The config class of a type that can do the task; ModelError otherwise."""
    defaults, ours = DEFAULTS.get(task, {}), architectures(task)
    model_type = defaults[name][0] if name in defaults else name
    supported = _supported(task)
    others = [config.model_type for config in supported.keys()]
    more = ", or a model type of transformers" if len(others) > len(ours) else ""
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(name, ours) or did_you_mean(name, others)
        raise ModelError(f"model has no type '{name}'.{hint} Types: {', '.join(ours)}{more}")
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    if config_class not in supported:
        some = ", bert ..." if more else ""
        raise ModelError(f"model.type {name} has no form for {task}. Types that have: {', '.join(ours)}{some}")
    _refuse_padding_shows(config_class, f"model.type {name}")
    return config_class


def _together_problems(model: Mapping[str, Any], task: str) -> list[Problem]:
    """What only shows when the fields meet: build without memory for weights, and hear what the architecture says."""
    model_type, fields = resolve(model, task)
    reason = _why_not(model, task)
    if reason is None:
        return []
    if problem := divisibility_problem(CONFIG_MAPPING[model_type], fields, model):
        return [problem]
    for key, value in model.items():
        if key != "type" and _why_not({name: model[name] for name in model if name != key}, task) is None:
            hint = did_you_mean(value, ACT2FN) if isinstance(value, str) else ""
            return [(key, f"model.{key} is {value!r}: {reason}{hint and '.' + hint}")]
    return [("type", f"model.type {model['type']} cannot be built from these fields: {reason}")]


def _why_not(model: Mapping[str, Any], task: str) -> str | None:
    """Why the section gives no model that can do the task; nothing if it does."""
    try:
        config = _outline(model, task).config
    except Exception as e:  # an architecture says it in its own way
        return root_message(e)
    return sees_ahead(config) or None if task == "text-generation" else None


def _outline(model: Mapping[str, Any], task: str) -> PreTrainedModel:
    """The model of a section, without memory for its weights."""
    with torch.device("meta"):
        if "type" in model:
            return build(model, EXAMPLE, task)
        fields = {name: value for name, value in model.items() if name not in BESIDE}
        config = pretrained.changed(pretrained.read_config(model["pretrained"]), fields)
        return auto_class(task).from_config(config)  # type: ignore[no-any-return]


def _pretrained_config(source: str, task: str) -> type[PreTrainedConfig]:
    """The config class of a checkpoint that can do the task; ModelError otherwise."""
    if AUTO_CLASSES[task] == "AutoModel":
        raise ModelError(
            f"model.pretrained is {source!r}, but {task} trains from scratch: a network reads the columns of the "
            f"table that it was trained on, and no others. Name a type: {', '.join(architectures(task))}"
        )
    config = pretrained.read_config(source)
    if type(config) not in _supported(task):
        raise ModelError(f"model.pretrained: {source} is a {config.model_type}, which has no form for {task}")
    _refuse_padding_shows(type(config), f"model.pretrained: {source} is a {config.model_type}, which")
    return type(config)


def _refuse_padding_shows(config_class: type[PreTrainedConfig], what: str) -> None:
    if config_class.model_type in PADDING_SHOWS:
        raise ModelError(f"{what} answers a text otherwise when others are asked with it: its padding is not masked")
