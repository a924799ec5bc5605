"""Maximal update parametrisation: the paper's coordinate check, every multiplier, proxies, resuming."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bigmodel import models, mup, optim
from bigmodel.data.prepare import prepare
from bigmodel.errors import ConfigError
from bigmodel.experiment import Experiment, change
from bigmodel.models.init import initialize
from bigmodel.optim import Scale
from bigmodel.pipeline import read_experiment
from bigmodel.training.fit import fit
from bigmodel.training.trainer import Trainer, Worker

ENCODER = [
    "bert.embeddings",
    "bert.encoder.layer.0.attention.self.query",
    "bert.encoder.layer.0.output.dense",
    "bert.encoder.layer.1.attention.self.key",
    "bert.encoder.layer.1.output.dense",
    "bert.pooler.dense",
    "classifier",
]
DECODER = [
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.1.mlp.down_proj",
    "lm_head",
]
"""Modules whose outputs are compared before and after a few steps."""


def decoder(width: int, base: int | None, *changes: str) -> Experiment:
    return change(
        {
            "task": "text-generation",
            "data": {"train": "texts.txt"},
            "model": {"type": "transformer", "hidden_size": width, "num_hidden_layers": 2},
            "mup": {"hidden_size": base},
        },
        changes,
    )


def encoder(width: int, base: int | None, *changes: str) -> Experiment:
    return change(
        {
            "task": "text-classification",
            "data": {"train": "reviews.csv", "text": "text", "label": "label"},
            "model": {
                "type": "transformer",
                "hidden_size": width,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "mup": {"hidden_size": base},
        },
        changes,
    )


Make = Callable[..., Experiment]


def started(experiment: Experiment, seed: int = 0) -> tuple[Any, dict[str, Scale]]:
    """The model at its initial weights, and what its optimiser multiplies."""
    model = models.build(experiment.model, models.EXAMPLE, experiment.task)
    initialize(model, experiment.init, seed)
    return model, mup.apply(experiment, model)


# ---- the coordinate check


def changes(experiment: Experiment, watched: list[str], seed: int, steps: int = 4) -> dict[str, float]:
    """How far a few steps on one batch move the outputs of the watched modules (root of the mean square)."""
    model, scales = started(experiment, seed)
    optimizer = optim.build(experiment.optim, model, scales)
    ids = torch.randint(4, 64, (16, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 2 if watched is ENCODER else ids
    seen: dict[str, Any] = {}
    for name in watched:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output.detach())
        )
    model(input_ids=ids)
    before = dict(seen)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model(input_ids=ids)
    return {name: (seen[name] - before[name]).square().mean().sqrt().item() for name in watched}


def growth(make: Make, watched: list[str], base: int | None, *settings: str) -> dict[str, float]:
    """The power of the width with which a module's change grows between 64 and 256, over three seeds."""
    sizes = {
        width: [changes(make(width, base, *settings), watched, seed) for seed in range(3)] for width in (64, 128, 256)
    }
    total = {name: [sum(found[name] for found in sizes[width]) for width in sizes] for name in watched}
    return {name: math.log(last / first, 4) for name, (first, _, last) in total.items()}


SETTINGS = [
    ("optim.lr=1e-3",),
    ("optim.lr=1e-3", "optim.type=adamw", "optim.weight_decay=0.1"),
    ("optim.lr=1e-3", "init=normal"),
    ("optim.lr=1e-3", "init=orthogonal"),
    ("optim.lr=1e-2", "optim.type=gd", "optim.clip=0"),
]


@pytest.mark.parametrize(
    ("make", "watched", "settings"),
    [
        *((encoder, ENCODER, settings) for settings in SETTINGS),
        *((decoder, DECODER, settings) for settings in SETTINGS[:2]),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(value),
)
def test_what_a_step_changes_does_not_grow_with_the_width(make, watched, settings):
    scaled, standard = growth(make, watched, 64, *settings), growth(make, watched, None, *settings)
    assert max(scaled.values()) < 0.1, scaled
    assert min(scaled[name] for name in watched[:-1]) > -0.4, "and does not vanish: the features are learnt"
    assert sum(standard.values()) / len(standard) > 0.3, standard


# ---- the multipliers

WIDE = 256  # four times the base


INPUT = {"adam": Scale(1, 1 / 4, 1 / 4), "adamw": Scale(1, 1 / 4, 1), "gd": Scale(4, 1, 1 / 4)}
HIDDEN = {"adam": Scale(1 / 4, 1 / 4, 1), "adamw": Scale(1 / 4, 1 / 4, 4), "gd": Scale(1, 1, 1)}
OUTPUT = {"adam": Scale(1 / 4, 1, 4), "adamw": Scale(1 / 4, 1, 4), "gd": Scale(1 / 4, 1, 4)}
FIXED = {"adam": Scale(1, 1, 1), "adamw": Scale(1, 1, 1), "gd": Scale(1, 1, 1)}
"""Rate, eps and weight decay, beside those at the base width."""


@pytest.mark.parametrize("kind", ["adam", "adamw", "gd"])
@pytest.mark.parametrize(
    ("parameter", "scale"),
    [
        ("bert.embeddings.word_embeddings.weight", INPUT),
        ("bert.embeddings.position_embeddings.weight", INPUT),
        ("bert.embeddings.token_type_embeddings.weight", INPUT),
        ("bert.embeddings.LayerNorm.weight", INPUT),
        ("bert.encoder.layer.0.attention.self.query.weight", HIDDEN),
        ("bert.encoder.layer.0.attention.self.query.bias", INPUT),
        ("bert.encoder.layer.0.attention.output.dense.weight", HIDDEN),
        ("bert.encoder.layer.1.intermediate.dense.weight", HIDDEN),
        ("bert.encoder.layer.1.output.dense.weight", HIDDEN),
        ("bert.encoder.layer.1.output.LayerNorm.bias", INPUT),
        ("bert.pooler.dense.weight", HIDDEN),
        ("classifier.weight", OUTPUT),
        ("classifier.bias", FIXED),
    ],
)
def test_every_parameter_is_scaled_by_its_role(parameter, scale, kind):
    assert started(encoder(WIDE, 64, f"optim.type={kind}", "optim.clip=0"))[1][parameter] == scale[kind]


@pytest.mark.parametrize("scheme", ["xavier", "kaiming", "orthogonal", "normal"])
def test_initial_weights_follow_the_table_whatever_the_scheme(scheme):
    narrow, wide = (started(encoder(width, 64, f"init={scheme}"))[0] for width in (64, WIDE))
    roles = {"input": 1.0, "hidden": 1 / 2, "output": 1 / 4}
    for name, parameter in wide.named_parameters():
        role = mup.FAMILIES["bert"].role(name, parameter.dim())
        if parameter.dim() > 1 and parameter.numel() >= 512:
            ratio = parameter.std() / narrow.get_parameter(name).std()
            assert ratio.item() == pytest.approx(roles[role], rel=0.2), name


def test_roles_say_which_sides_grow():
    narrow, wide = (started(encoder(width, None))[0] for width in (64, 128))
    grown = {"input": 1, "hidden": 2, "output": 1, "fixed": 0}
    for name, parameter in wide.named_parameters():
        sides = sum(a != b for a, b in zip(parameter.shape, narrow.get_parameter(name).shape, strict=True))
        assert sides == grown[mup.FAMILIES["bert"].role(name, parameter.dim())], name


def test_at_the_base_width_it_is_the_standard_parametrisation_to_the_bit(experiment, tmp_path):
    narrow = ("model={type: transformer, hidden_size: 8}", "optim.weight_decay=0.1")
    standard = fit(experiment(*narrow, f"output={tmp_path / 'a'}"))
    scaled = fit(experiment(*narrow, "mup.hidden_size=8", f"output={tmp_path / 'b'}"))
    theirs = load_file(scaled.model / "model.safetensors")
    for name, tensor in load_file(standard.model / "model.safetensors").items():
        assert torch.equal(tensor, theirs[name]), name


# ---- the loop


WIDER = ("model={type: transformer, hidden_size: 16, num_attention_heads: 4}", "mup.hidden_size=8", "optim.lr=1e-2")


def test_every_group_has_its_own_rate_at_every_step(experiment):
    trainer = Trainer(experiment(*WIDER), prepare(experiment(*WIDER)), Worker())
    trainer.wrap()
    for _ in range(3):
        lr = trainer.step()["lr"]
        rates = {name: group["lr"] for group in trainer.optimizer.param_groups for name in group["param_names"]}
        assert rates["classifier.weight"] == rates["bert.pooler.dense.weight"] == lr / 2
        assert rates["bert.embeddings.word_embeddings.weight"] == rates["classifier.bias"] == lr


def test_a_run_continues_to_the_last_bit(experiment):
    wanted = experiment(*WIDER)
    whole, first, second = (Trainer(wanted, prepare(wanted), Worker()) for _ in range(3))
    for trainer in (whole, first, second):
        trainer.wrap()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    second.restore(first.tensors())
    second.progress.step = 3
    for _ in range(3):
        second.step()
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name


# ---- proxies


def test_a_proxy_is_narrower_and_what_it_finds_is_carried_back():
    wide = encoder(512, None, "model.num_hidden_layers=3", "output=runs/wide")
    narrow = mup.proxy(wide, {"hidden_size": 64})
    assert narrow.mup.hidden_size == 64
    shape = {name: narrow.model[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
    assert shape == {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}
    assert narrow.model["num_hidden_layers"] == 3

    found = change(narrow.model_dump(), ["optim.lr=0.003", "optim.betas=[0.8, 0.99]", "output=runs/trial"])
    carried = mup.widen(found, wide)
    assert carried == encoder(
        512, 64, "model.num_hidden_layers=3", "output=runs/wide", "optim.lr=0.003", "optim.betas=[0.8, 0.99]"
    )


def test_a_proxy_of_what_is_scaled_already_keeps_its_base():
    assert mup.proxy(encoder(512, 128), {"hidden_size": 64}).mup.hidden_size == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model={type: lstm}"], "and this is lstm"),
        (["model={pretrained: bert-base-chinese}"], "and this is pretrained"),
        (["model={type: distilbert}"], "and this is distilbert"),
        (["model.hidden_size=256", "model.num_attention_heads=2"], "a multiple of 128, such as 128"),
        (["optim.type=gd"], "optim.clip=0"),
    ],
)
def test_what_cannot_be_scaled_is_refused_in_a_sentence(changes, message):
    with pytest.raises(ConfigError, match=message):
        mup.proxy(encoder(256, None, *changes), {"hidden_size": 64})


def test_a_table_that_is_input_and_output_is_refused():
    with pytest.raises(ConfigError, match="mup needs model.tie_word_embeddings=false"):
        mup.proxy(decoder(256, None, "model.tie_word_embeddings=true"), {"hidden_size": 64})


def test_a_proxy_is_of_another_width_and_nothing_else():
    with pytest.raises(ConfigError, match="narrower and nothing else"):
        mup.proxy(encoder(256, None), {"num_hidden_layers": 1})


def test_an_experiment_file_that_cannot_be_scaled_is_refused_with_its_line(tmp_path: Path):
    file = tmp_path / "lstm.yaml"
    file.write_text(
        "task: text-classification\ndata: {train: a.csv, text: text, label: label}\n"
        "model: {type: lstm}\nmup: {hidden_size: 64}\n"
    )
    with pytest.raises(ConfigError, match=r"lstm\.yaml:4: mup scales an encoder or decoder"):
        read_experiment(file)
