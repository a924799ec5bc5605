"""TextCNN against a plain loop over texts, windows and filters."""

import pytest
import torch
from padded import PADDINGS, alone, random_texts, together
from scipy.fft import idct
from transformers import PreTrainedModel

from bigmodel import models
from bigmodel.models.init import initialize

LEARNT = {"vocab_size": 40, "pad_token_id": 0, "id2label": {0: "a", 1: "b", 2: "c"}}
TEXTS = random_texts([1, 2, 9, 4, 12, 3], vocab_size=40)  # the widest kernel reads 5
FORMS = {
    "without n-grams": {"kernel_sizes": [1, 3, 5]},
    "with n-grams": {"kernel_sizes": [2, 4], "ngram_orders": [1, 2, 3], "ngram_buckets": 50, "ngram_size": 4},
    "n-grams alone": {"kernel_sizes": [], "ngram_orders": [2], "ngram_buckets": 50, "ngram_size": 4},
    "with votes": {"kernel_sizes": [2, 4], "ngram_orders": [1, 2], "ngram_buckets": 50, "ngram_size": 0},
    "votes alone": {"kernel_sizes": [], "ngram_orders": [1, 2], "ngram_buckets": 50, "ngram_size": 0, "ngram_scale": 3},
}
each_form = pytest.mark.parametrize("form", FORMS)


def small(form: str, **fields) -> PreTrainedModel:
    section = {"type": "textcnn", "embedding_size": 6, "num_filters": 7, "dropout": 0.0} | FORMS[form] | fields
    model = models.build(section, LEARNT, "text-classification").eval()
    initialize(model, "kaiming", seed=1)
    with torch.no_grad():
        for convolution in model.convolutions:
            convolution.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
        if model.ngrams is not None:
            model.ngrams.weight[1:].uniform_(-1, 1, generator=torch.Generator().manual_seed(3))
    return model


@torch.no_grad()
def oracle(model: PreTrainedModel, text: list[int]) -> torch.Tensor:
    """The logits of one text, read as the definition says: window by window."""
    config, features = model.config, []
    for size, convolution in zip(config.kernel_sizes, model.convolutions, strict=True):
        nothing = [torch.zeros(config.embedding_size)] * size  # beyond either end; a window of it alone is one too
        vectors = nothing + [model.embeddings.weight[token] for token in text] + nothing
        windows = [torch.stack(vectors[start : start + size], dim=1) for start in range(len(vectors) - size + 1)]
        responses = torch.stack([(convolution.weight * window).sum((1, 2)) + convolution.bias for window in windows])
        features.append(responses.relu().max(0).values)
    grams = [text[i : i + order] for order in config.ngram_orders for i in range(len(text) - order + 1)]
    vectors = [model.ngrams.weight[row_of(gram, config.ngram_buckets)] for gram in grams]
    if config.ngram_orders and config.ngram_size:
        features.append(sum(vectors) / len(vectors) if vectors else torch.zeros(config.ngram_size))
    logits = [model.classifier(torch.cat(features))] if features else []
    if config.ngram_orders and not config.ngram_size:
        weights = [torch.from_numpy(idct(vector.numpy(), norm="ortho")) for vector in vectors]
        logits.append(config.ngram_scale * sum(weights) / len(weights) ** 0.5)
    return sum(logits) / len(logits)


def row_of(gram: list[int], buckets: int) -> int:
    key = len(gram)
    for token in gram:
        key = (key * 1_103_515_245 + token + 1) % (2**31 - 1)
    return key % buckets + 1


@each_form
def test_the_model_is_what_a_loop_over_windows_computes(form):
    model = small(form)
    expected = torch.stack([oracle(model, text) for text in TEXTS])
    for padding in PADDINGS:
        torch.testing.assert_close(together(model, TEXTS, padding), expected, rtol=1e-5, atol=1e-6)


@each_form
@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_never_changes_an_answer(form, padding):
    model = small(form)
    torch.testing.assert_close(together(model, TEXTS, padding), alone(model, TEXTS), rtol=0, atol=1e-5)


@each_form
def test_padding_never_changes_an_answer_in_bf16(form):
    model = small(form)
    exact = alone(model, TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, by_itself = together(model, TEXTS, "anywhere"), alone(model, TEXTS)
    torch.testing.assert_close(found.float(), by_itself.float(), rtol=0, atol=0.02)
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05)


@each_form
def test_weights_in_bfloat16_answer_about_the_same(form):
    model = small(form)
    exact = together(model, TEXTS, "right")
    torch.testing.assert_close(together(model.bfloat16(), TEXTS, "right").float(), exact, rtol=0, atol=0.1)


def test_a_text_of_nothing_but_padding_has_an_answer():
    model = small("with n-grams")
    empty = {"input_ids": torch.zeros(2, 4, dtype=torch.int64), "attention_mask": torch.zeros(2, 4)}
    assert model(**empty).logits.isfinite().all()


def test_ngrams_tell_the_order_of_words_apart():
    model = small("n-grams alone")
    assert not torch.allclose(alone(model, [[3, 4, 5]]), alone(model, [[5, 4, 3]]), atol=1e-4)


def test_ngrams_without_input_ids_are_refused_with_the_reason():
    model = small("with n-grams")
    with pytest.raises(AssertionError, match="give them beside inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 3, 6))


def test_a_text_trains_either_the_network_or_the_votes():
    """Both learn to answer by themselves: each text of a batch moves one of them, and every text moves one."""
    model = small("with votes").train()
    ids = torch.tensor([[2 * number + 2, 2 * number + 3] for number in range(8)])
    model(ids).logits.sum().backward()
    read = {row for row in range(8) if model.embeddings.weight.grad[ids[row]].any()}
    counted = {row for row in range(8) if model.ngrams.weight.grad[row_of(ids[row].tolist(), 50)].any()}
    assert read | counted == set(range(8)) and len(read) == 4


def test_votes_start_at_zero_and_a_table_of_vectors_does_not():
    for form, starts in (("with votes", True), ("with n-grams", False)):
        model = models.build({"type": "textcnn", **FORMS[form]}, LEARNT, "text-classification")
        initialize(model, "xavier", seed=0)
        assert bool((model.ngrams.weight == 0).all()) == starts
