"""What is wrong with the fields of a model's config.

`PreTrainedConfig` takes misspelt names in silence and stops at the first wrong type; here every mistake is found, and
has a message of its own. A problem is (key of the model section, message).
"""

import dataclasses
import math
import types
from collections.abc import Collection, Container, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from transformers.configuration_utils import PreTrainedConfig

from bigmodel.errors import did_you_mean

Problem = tuple[str, str]

LEARNT = {
    "vocab_size": "the training data", "pad_token_id": "the tokenizer", "bos_token_id": "the tokenizer",
    "eos_token_id": "the tokenizer", "id2label": "the training data", "label2id": "the training data",
    "num_labels": "the training data", "max_position_embeddings": "data.max_length",
    "decoder_vocab_size": "the training data", "decoder_start_token_id": "the tokenizer",
    "forced_eos_token_id": "the tokenizer", "share_encoder_decoder_embeddings": "data.tokenizer.joint",
    "image_size": "data.images.size", "num_channels": "the images",
    "bins": "the training data", "cardinalities": "the training data", "target_mean": "the training data",
    "target_std": "the training data",
}  # fmt: skip
"""Fields that no experiment sets, and what they follow from."""
LEAST = {
    "hidden_size": 1, "embedding_size": 1, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_filters": 1, "kernel_sizes": 1, "ngram_orders": 1, "ngram_buckets": 1, "ngram_size": 0,
}  # fmt: skip
"""The smallest value of a field, or of each number in its list."""


class ModelError(ValueError):
    """A model that was asked for cannot be; the message is for the person who asked."""


def field_problems(
    config_class: type[PreTrainedConfig], values: Mapping[Any, Any], beside: Collection[str] = ()
) -> list[Problem]:
    """Misspelt names, wrong types and impossible values, each looked at alone; and two names of one field. What stands
    `beside` the fields, which is checked elsewhere, may have been meant."""
    problems = []
    for key, value in values.items():
        message = name_problem(config_class, str(key), beside) or value_problem(config_class, key, value)
        own = config_class.attribute_map.get(key)
        if message is None and own in values:
            message = f"model.{key} and model.{own} are one field of this model: keep one of them"
        if message:
            problems.append((str(key), message))
    return problems


def name_problem(config_class: type[PreTrainedConfig], key: str, beside: Collection[str] = ()) -> str | None:
    common = {own: name for name, own in config_class.attribute_map.items()}.get(key, key)
    if common in LEARNT:
        return f"model.{key} follows from {LEARNT[common]} and cannot be set here"
    own = own_fields(config_class)
    if key in own or key in config_class.attribute_map:
        return None
    known = own - set(LEARNT)
    fields = f"Fields of {config_class.model_type}: {', '.join(sorted(known))}"
    return f"model has no field '{key}'.{did_you_mean(key, known | set(beside))} {fields}"


def value_problem(config_class: type[PreTrainedConfig], key: str, value: Any) -> str | None:
    name = config_class.attribute_map.get(key, key)
    try:
        fit(config_class, name, value)
    except (TypeError, ValueError):
        annotation = {field.name: field.type for field in dataclasses.fields(config_class)}[name]
        hint = did_you_mean(str(value), map(str, get_args(annotation))) if get_origin(annotation) is Literal else ""
        return f"model.{key} is {value!r}, but must be {describe(annotation)}{hint and '.' + hint}"
    numbers = [
        number
        for number in (value if isinstance(value, list) else [value])
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    ]
    least = LEAST.get(key, LEAST.get(name, -math.inf))
    if any(number < least for number in numbers):
        return f"model.{key} is {value!r}, but must be at least {least}"
    if ("drop" in name or name.endswith("_prob")) and any(not 0 <= number < 1 for number in numbers):
        return f"model.{key} is {value!r}, but a probability of dropping is at least 0 and below 1"
    if name.endswith(("_range", "_eps", "_scale")) and any(not 0 < number < math.inf for number in numbers):
        return f"model.{key} is {value!r}, but must be above 0"
    return None


def divisibility_problem(
    config_class: type[PreTrainedConfig], values: Mapping[str, Any], given: Container[str]
) -> Problem | None:
    """Attention heads share the width equally, where the architecture gives them no size of their own.

    values  the fields, defaults of ours included; given  those that the experiment names
    """
    names = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    if not {"hidden_size", "num_attention_heads"} <= names or "head_dim" in names:
        return None
    width_key, width = name_and_value(config_class, values, "hidden_size")
    heads_key, heads = name_and_value(config_class, values, "num_attention_heads")
    if width % heads == 0:
        return None
    divisors = ", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)
    message = f"model.{width_key} {width} is not divisible by {heads_key} {heads}. It is by {divisors}"
    return heads_key if heads_key in given else width_key, message


def name_and_value(config_class: type[PreTrainedConfig], values: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """The name under which a field is given, its own or the common one, and its value or default."""
    own = config_class.attribute_map.get(key, key)
    name = own if own in values else key
    return name, values.get(name, getattr(config_class, own))


def make(config_class: type[PreTrainedConfig], values: Mapping[str, Any]) -> PreTrainedConfig:
    """A config from its fields' own or their common names."""
    names = {key: config_class.attribute_map.get(key, key) for key in values}
    return config_class(**{names[key]: fit(config_class, names[key], value) for key, value in values.items()})


def fit(config_class: type[PreTrainedConfig], name: str, value: Any) -> Any:
    """The value as the field's type wants it: 1.0 for 1, a tuple for a list. TypeError if it cannot be."""
    validators = getattr(config_class, "__validators__", {}).get(name, [])
    for candidate in (value, *alternatives(value)):
        try:
            for validator in validators:
                validator(candidate)
            return candidate
        except (TypeError, ValueError):
            continue
    raise TypeError(f"{name}: {value!r}")


def alternatives(value: Any) -> list[Any]:
    if isinstance(value, int) and not isinstance(value, bool):
        return [float(value)]
    if isinstance(value, list):
        return [tuple(value)]
    return []


def own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """The architecture's fields, without those that every config has."""
    every = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name for field in dataclasses.fields(config_class)} - every


def describe(annotation: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}
    if annotation in words:
        return words[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        if set(arguments) == {int, float}:
            return "a number"
        return " or ".join(dict.fromkeys(map(describe, arguments)))
    if origin in (list, tuple):
        kinds = {int: "whole numbers", float: "numbers", str: "words"}
        return "a list of " + kinds.get(arguments[0], "values") if arguments else "a list"
    return str(annotation)


def root_message(error: BaseException) -> str:
    """The first line of what went wrong at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"there is no {first}" if isinstance(error, KeyError) else first
