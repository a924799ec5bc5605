"""The padding-free twin of a BERT classifier against the model's own forward, and against itself in other company."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from bigmodel.models.packed import pack

LENGTHS = [2, 37, 5, 5, 64, 1, 33, 5, 12, 64, 7]


def bert(**fields):
    torch.manual_seed(0)
    small = {"vocab_size": 90, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_labels": 3}
    config = BertConfig(**(small | {"num_hidden_layers": 2, "max_position_embeddings": 64} | fields))
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():  # what training would have spread: answers that differ, norms that are not 1 and 0
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def batch(lengths, seed=0):
    rng = np.random.default_rng(seed)
    ids, mask = (
        np.zeros((len(lengths), max(lengths)), dtype=np.int64),
        np.zeros((len(lengths), max(lengths)), dtype=np.int64),
    )
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = rng.integers(1, 90, length), 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


FIELDS = [
    {},
    {"num_hidden_layers": 1},
    {"num_hidden_layers": 4},
    {"hidden_act": "relu"},
    {"hidden_act": "gelu_new"},
    {"num_attention_heads": 1},
    {"type_vocab_size": 1},
]


@pytest.mark.parametrize("fields", FIELDS)
@torch.inference_mode()
def test_in_fp32_it_gives_the_logits_of_the_plain_model(fields):
    model = bert(**fields)
    given = batch(LENGTHS)
    torch.testing.assert_close(pack(model)(**given).logits, model(**given).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [[1], [64], [3, 3, 3], [1, 1], list(range(1, 65)), [32], [31, 33]])
@torch.inference_mode()
def test_any_lengths_go_together(lengths):
    model = bert()
    given = batch(lengths)
    torch.testing.assert_close(pack(model)(**given).logits, model(**given).logits, rtol=1e-5, atol=1e-5)
    rounded = pack(model, "bf16")(**given).logits
    assert rounded.shape == (len(lengths), 3) and rounded.isfinite().all()


@pytest.mark.parametrize("layers", [2, 12])
@torch.inference_mode()
def test_in_bf16_it_is_as_near_to_fp32_as_autocast_is(layers):
    model = bert(num_hidden_layers=layers)
    given = batch([1 + i % 64 for i in range(256)])
    exact = model(**given).logits.softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(**given).logits.float().softmax(-1)
    packed = pack(model, "bf16")(**given).logits.float().softmax(-1)
    off, usual = (packed - exact).abs(), (cast - exact).abs()
    assert off.mean() <= 1.2 * usual.mean() and off.max() <= 1.5 * usual.max()


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 5e-3)])
@torch.inference_mode()
def test_an_answer_does_not_depend_on_its_company(precision, bound):
    twin = pack(bert(), precision)
    given = batch(LENGTHS)
    together = twin(**given).logits.float().softmax(-1)
    for row, length in enumerate(LENGTHS):
        alone = twin(given["input_ids"][row : row + 1, :length], given["attention_mask"][row : row + 1, :length])
        torch.testing.assert_close(alone.logits.float().softmax(-1)[0], together[row], rtol=0, atol=bound)
    shuffled = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(1))
    again = twin(given["input_ids"][shuffled], given["attention_mask"][shuffled]).logits.float().softmax(-1)
    torch.testing.assert_close(again, together[shuffled], rtol=0, atol=bound)


def test_fp32_weights_are_shared_and_bf16_weights_made_once():
    model = bert()
    twin, half = pack(model), pack(model, "bf16")
    wide = model.bert.encoder.layer[0].intermediate.dense.weight
    assert twin.layers[0]["wide"][0].data_ptr() == wide.data_ptr()
    assert half.layers[0]["wide"][0].dtype == torch.bfloat16 and wide.dtype == torch.float32


def test_it_leaves_other_models_alone():
    roberta = RobertaConfig(vocab_size=90, hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    assert pack(RobertaForSequenceClassification(roberta)) is None
    assert pack(bert(is_decoder=True)) is None
    assert pack(bert().to("meta")) is None
