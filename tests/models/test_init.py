"""The named schemes against their variances, for each kind of module."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from bigmodel import models
from bigmodel.models.init import initialize

LEARNT = {"vocab_size": 300, "pad_token_id": 0, "id2label": {0: "a", 1: "b"}, "max_length": 32}
SCHEMES = ("xavier", "kaiming", "orthogonal", "normal")
MODELS = {
    "lstm": {"type": "lstm", "embedding_size": 48, "hidden_size": 64},
    "gru": {"type": "gru", "embedding_size": 48, "hidden_size": 64, "num_hidden_layers": 2},
    "textcnn": {"type": "textcnn", "embedding_size": 32, "num_filters": 64, "kernel_sizes": [3], "ngram_orders": [2],
                "ngram_buckets": 200, "ngram_size": 16},
    "transformer": {"type": "transformer", "hidden_size": 64},
    "gpt2": {"type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2},
    "gemma": {"type": "gemma", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
              "num_key_value_heads": 1, "intermediate_size": 96},
}  # fmt: skip
GATES = {"lstm": 4, "gru": 3}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def made(name: str, scheme: str, seed: int = 0) -> PreTrainedModel:
    model = models.build(MODELS[name], LEARNT, "text-classification")
    initialize(model, scheme, seed)
    return model


def agrees_with(weights: torch.Tensor, scheme: str, fan_in: int, fan_out: int) -> None:
    """Mean 0 and the variance that the scheme promises, within what so many draws may be off."""
    if scheme == "orthogonal":
        flat = weights.flatten(1)
        square = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
        torch.testing.assert_close(square, torch.eye(len(square)), rtol=0, atol=1e-5)
        return
    variance = {"xavier": 2 / (fan_in + fan_out), "kaiming": 2 / fan_in, "normal": 0.02**2}[scheme]
    allowed = 4 * math.sqrt(2 / weights.numel())
    assert weights.var().item() == pytest.approx(variance, rel=allowed)
    assert abs(weights.mean().item()) < 4 * math.sqrt(variance / weights.numel())
    if scheme == "xavier":
        assert weights.abs().max() <= math.sqrt(3 * variance)  # uniform


@each_scheme
@pytest.mark.parametrize("name", GATES)
def test_each_gate_of_a_recurrent_layer_is_a_map_of_its_own(name, scheme):
    for layer in made(name, scheme).layers:
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
            gates = weight.detach().chunk(GATES[name])
            for gate in gates:
                agrees_with(gate, scheme, fan_in=weight.shape[1], fan_out=64)
            assert not torch.equal(gates[0], gates[1])


@each_scheme
def test_a_kernel_has_the_fans_of_its_window(scheme):
    kernel = made("textcnn", scheme).convolutions[0].weight.detach()
    agrees_with(kernel, scheme, fan_in=32 * 3, fan_out=64 * 3)


@each_scheme
def test_the_matrices_of_an_encoder_are_drawn_by_their_fans(scheme):
    layer = made("transformer", scheme).bert.encoder.layer[0]
    agrees_with(layer.attention.self.query.weight.detach(), scheme, fan_in=64, fan_out=64)
    agrees_with(layer.intermediate.dense.weight.detach(), scheme, fan_in=64, fan_out=256)
    agrees_with(layer.output.dense.weight.detach(), scheme, fan_in=256, fan_out=64)


@each_scheme
def test_a_matrix_that_is_stored_the_other_way_round_keeps_its_fans(scheme):
    block = made("gpt2", scheme).transformer.h[0]
    agrees_with(block.mlp.c_fc.weight.detach().T, scheme, fan_in=64, fan_out=256)


@each_scheme
@pytest.mark.parametrize("name", ["lstm", "textcnn", "transformer", "gpt2"])
def test_a_token_has_a_vector_of_length_one_and_padding_has_none(name, scheme):
    model = made(name, scheme)
    table = model.get_input_embeddings()
    words = table.weight.detach()
    if table.padding_idx is not None:
        assert not words[table.padding_idx].any()
        words = words[1:]
    variance = 0.02**2 if scheme == "normal" else 1 / words.shape[1]
    assert words.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / words.numel()))


@each_scheme
def test_the_ngram_table_is_an_embedding_too(scheme):
    ngrams = made("textcnn", scheme).ngrams.weight.detach()
    assert not ngrams[0].any()
    assert ngrams[1:].var().item() == pytest.approx(0.02**2 if scheme == "normal" else 1 / 16, rel=0.1)


@each_scheme
def test_biases_are_zero_but_an_lstm_starts_by_remembering(scheme):
    for name in MODELS:
        for path, parameter in made(name, scheme).named_parameters():
            if ".bias_ih" in path and name == "lstm":
                forget = parameter.detach().chunk(4)[1]
                assert (forget == 1).all() and parameter.sum() == forget.sum(), path
            elif "bias" in path:
                assert not parameter.any(), f"{name}: {path}"


@each_scheme
def test_a_norm_changes_nothing_at_first(scheme):
    for name, neutral in (("transformer", 1.0), ("gpt2", 1.0), ("gemma", 0.0)):
        norms = [m for m in made(name, scheme).modules() if "Norm" in type(m).__name__]
        assert norms and all((norm.weight == neutral).all() for norm in norms), name


@each_scheme
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_follow_from_seed_and_name_alone(name, scheme):
    torch.manual_seed(1)
    first = made(name, scheme).state_dict()
    torch.manual_seed(2)
    model = models.build(MODELS[name], LEARNT, "text-classification")
    before = torch.get_rng_state()
    initialize(model, scheme, seed=0)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    assert all(torch.equal(first[key], tensor) for key, tensor in model.state_dict().items())
    other = made(name, scheme, seed=1).state_dict()
    assert all(not torch.equal(first[key], other[key]) for key, tensor in first.items() if tensor.unique().numel() > 2)


def test_another_layer_leaves_the_numbers_of_the_first_as_they_are():
    shallow, deep = (
        models.build(MODELS["gru"] | {"num_hidden_layers": layers}, LEARNT, "text-classification") for layers in (1, 2)
    )
    for model in (shallow, deep):
        initialize(model, "xavier", seed=3)
    first = deep.state_dict()
    assert all(torch.equal(first[key], tensor) for key, tensor in shallow.state_dict().items())


def test_parameters_of_one_shape_are_not_alike():
    layer = made("transformer", "orthogonal").bert.encoder.layer
    query, key, other = (layer[0].attention.self.query, layer[0].attention.self.key, layer[1].attention.self.query)
    assert not torch.equal(query.weight, key.weight) and not torch.equal(query.weight, other.weight)


def test_an_unknown_scheme_names_those_there_are():
    model = models.build(MODELS["lstm"], LEARNT, "text-classification")
    with pytest.raises(
        ValueError, match="no initialisation scheme 'glorot'. Schemes: xavier, kaiming, orthogonal, normal"
    ):
        initialize(model, "glorot", seed=0)


def test_the_deviation_of_normal_is_the_configs():
    model = models.build(MODELS["lstm"] | {"initializer_range": 0.3}, LEARNT, "text-classification")
    initialize(model, "normal", seed=0)
    assert model.layers[0].weight_hh_l0.std().item() == pytest.approx(0.3, rel=0.05)
