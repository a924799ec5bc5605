"""LSTM and GRU against torch's own networks on packed sequences, with the same weights."""

import pytest
import torch
from kernels import skipped_without_kernel
from padded import PADDINGS, alone, batch, random_texts, together
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import PreTrainedModel

from bigmodel import models
from bigmodel.models.init import initialize
from bigmodel.predictor import autocast

LEARNT = {"vocab_size": 40, "pad_token_id": 0, "id2label": {0: "a", 1: "b", 2: "c"}}
TEXTS = random_texts([1, 9, 4, 2, 9, 5], vocab_size=40)
LAYERS = {"one layer": 1, "two layers": 2}
DIRECTIONS = {"one direction": False, "two directions": True}
POOLINGS = ("last", "mean", "max")
TYPES = {"lstm": nn.LSTM, "gru": nn.GRU}


def small(type: str, **fields) -> PreTrainedModel:
    section = {"type": type, "embedding_size": 6, "hidden_size": 5, "dropout": 0.0, **fields}
    model = models.build(section, LEARNT, "text-classification").eval()
    initialize(model, "xavier", seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


def oracle(model: PreTrainedModel, texts: list[list[int]]) -> torch.Tensor:
    """The logits that torch's own network gives, on packed sequences."""
    config = model.config
    network = TYPES[config.model_type](
        config.embedding_size, config.hidden_size, config.num_hidden_layers, bidirectional=config.bidirectional
    )
    named = dict(network.named_parameters())
    with torch.no_grad():
        for suffix, layers in (("", model.layers), ("_reverse", model.backward_layers)):
            for depth, layer in enumerate(layers):
                for name, parameter in layer.named_parameters():
                    named.pop(name.removesuffix("_l0") + f"_l{depth}{suffix}").copy_(parameter)
        assert not named, f"weights without a counterpart: {list(named)}"
        padded = batch(texts)
        lengths = padded["attention_mask"].sum(1)
        packed = pack_padded_sequence(
            model.embeddings(padded["input_ids"]), lengths, batch_first=True, enforce_sorted=False
        )
        outputs, state = network(packed)
        last = state[0] if isinstance(state, tuple) else state  # (layers * D, B, H)
        states, _ = pad_packed_sequence(outputs, batch_first=True)
        read = [states[row, :length] for row, length in enumerate(lengths)]
        top = last[-2:] if config.bidirectional else last[-1:]
        pooled = {
            "last": torch.cat(list(top), dim=-1),
            "mean": torch.stack([s.mean(0) for s in read]),
            "max": torch.stack([s.max(0).values for s in read]),
        }[config.pooling]
        return model.classifier(pooled)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("type", TYPES)
def test_the_network_is_torchs_on_packed_sequences(type, layers, directions, pooling):
    model = small(type, num_hidden_layers=LAYERS[layers], bidirectional=DIRECTIONS[directions], pooling=pooling)
    for padding in PADDINGS:
        torch.testing.assert_close(together(model, TEXTS, padding), oracle(model, TEXTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("type", TYPES)
def test_padding_never_changes_an_answer(type, padding, pooling):
    model = small(type, num_hidden_layers=2, pooling=pooling)
    torch.testing.assert_close(together(model, TEXTS, padding), alone(model, TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("type", TYPES)
def test_padding_never_changes_an_answer_in_bf16(type, pooling):
    model = small(type, num_hidden_layers=2, pooling=pooling)
    exact = alone(model, TEXTS)
    with skipped_without_kernel(), autocast("cpu", "bf16"):
        found, by_itself = together(model, TEXTS, "anywhere"), alone(model, TEXTS)
    torch.testing.assert_close(found.float(), by_itself.float(), rtol=0, atol=0.01)
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("type", TYPES)
def test_the_vector_of_the_padding_token_never_shows(type):
    model = small(type)
    before = together(model, TEXTS, "anywhere")
    with torch.no_grad():
        model.embeddings.weight[0] = float("nan")
    assert torch.equal(together(model, TEXTS, "anywhere"), before)


@pytest.mark.parametrize("type", TYPES)
def test_a_text_of_nothing_but_padding_has_an_answer(type):
    model = small(type)
    for pooling in POOLINGS:
        model.config.pooling = pooling
        empty = {"input_ids": torch.zeros(2, 4, dtype=torch.int64), "attention_mask": torch.zeros(2, 4)}
        assert model(**empty).logits.isfinite().all()


@pytest.mark.parametrize("type", TYPES)
def test_the_order_of_the_words_counts(type):
    model = small(type, pooling="mean")
    assert not torch.allclose(alone(model, [[3, 4, 5]]), alone(model, [[5, 4, 3]]), atol=1e-4)


def test_dropout_works_between_the_layers_and_before_the_classifier():
    plain, dropped = small("lstm", num_hidden_layers=2), small("lstm", num_hidden_layers=2, dropout=0.5)
    found = [dropped.train()(**batch(TEXTS)).logits for _ in range(2)]
    assert not torch.equal(*found)
    assert torch.equal(together(dropped.eval(), TEXTS, "right"), together(plain, TEXTS, "right"))
