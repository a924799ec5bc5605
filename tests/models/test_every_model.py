"""What holds for every architecture that can be built from scratch: ours, and native ones through their config."""

import pytest
import torch
from padded import PADDINGS, alone, batch, random_texts, together
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bigmodel import models
from bigmodel.models.init import initialize

LEARNT = {
    "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_length": 20,
    "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1},
}  # fmt: skip
OURS = {
    "lstm": {"type": "lstm", "embedding_size": 6, "hidden_size": 5, "num_hidden_layers": 2},
    "gru": {"type": "gru", "embedding_size": 6, "hidden_size": 5, "pooling": "last", "bidirectional": False},
    "textcnn": {"type": "textcnn", "embedding_size": 6, "num_filters": 5},
    "textcnn with n-grams": {"type": "textcnn", "embedding_size": 6, "num_filters": 5, "ngram_orders": [1, 2],
                             "ngram_buckets": 90, "ngram_size": 4},
    "textcnn with votes": {"type": "textcnn", "embedding_size": 6, "num_filters": 5, "ngram_orders": [1, 2],
                           "ngram_buckets": 90, "ngram_size": 0},
    "votes alone": {"type": "textcnn", "kernel_sizes": [], "ngram_orders": [1], "ngram_buckets": 90, "ngram_size": 0},
}  # fmt: skip
NATIVE = {
    "transformer": {"type": "transformer", "hidden_size": 16},
    "roberta": {"type": "roberta", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16},
    "distilbert": {"type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "mpnet": {"type": "mpnet", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16},
    "gpt2": {"type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": {"type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 1, "intermediate_size": 16},
}  # fmt: skip
EVERY = OURS | NATIVE
TEXTS = [
    [2, *text, 3] for text in random_texts([1, 15, 6, 3], vocab_size=40)
]  # with its padding a batch is max_length wide


def made(name: str) -> PreTrainedModel:
    assert models.problems(EVERY[name], "text-classification") == []
    model = models.build(EVERY[name], LEARNT, "text-classification")
    initialize(model, "xavier", seed=0)
    return model.eval()


@pytest.mark.parametrize("name", EVERY)
def test_alone_equals_in_a_batch(name):
    model = made(name)
    for padding in PADDINGS if name in OURS else ("right",):  # native ones number positions from the left
        torch.testing.assert_close(together(model, TEXTS, padding), alone(model, TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_flow_to_every_parameter(name):
    model = made(name)
    texts = random_texts([16] * 12, vocab_size=40, seed=5)
    torch.nn.functional.cross_entropy(model(**batch(texts)).logits, torch.tensor([0, 1] * 6)).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
        flat = {"key.bias", "k.bias", "k_lin.bias"}  # softmax takes away what is added to every key
        if not path.endswith(tuple(flat)):
            assert parameter.grad.any(), f"{path}: no gradient"


@pytest.mark.parametrize("name", OURS)
def test_the_loss_is_the_mean_cross_entropy_of_the_labels(name):
    model, labels = made(name), torch.tensor([1, 0, 0, 1])
    output = model(**batch(TEXTS), labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    assert model(**batch(TEXTS)).loss is None


@pytest.mark.parametrize("name", [name for name, section in OURS.items() if section.get("kernel_sizes") != []])
@pytest.mark.parametrize("padding", PADDINGS)
def test_vectors_in_place_of_tokens_give_the_same_logits(name, padding):
    model, padded = made(name), batch(TEXTS, padding)
    vectors = model.get_input_embeddings()(padded["input_ids"])
    ids = {"input_ids": padded["input_ids"]} if getattr(model, "ngrams", None) is not None else {}
    found = model(attention_mask=padded["attention_mask"], inputs_embeds=vectors, **ids).logits
    torch.testing.assert_close(found, model(**padded).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_an_argument_that_is_not_honoured_is_refused(name):
    with pytest.raises(TypeError, match="position_ids"):
        made(name)(**batch(TEXTS), position_ids=torch.zeros(1))


@pytest.mark.parametrize("name", EVERY)
def test_saved_and_opened_is_equal_to_the_bit(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False).eval()
    assert type(opened) is type(model)
    stored, found = (
        {
            name: value
            for name, value in config.to_dict().items()
            if name not in ("_name_or_path", "transformers_version")
        }
        for config in (model.config, opened.config)
    )
    assert found == stored
    assert opened.config.id2label == {0: "bad", 1: "good"} and opened.config.label2id == {"bad": 0, "good": 1}
    before, after = model.state_dict(), opened.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(together(opened, TEXTS, "right"), together(model, TEXTS, "right"))


@pytest.mark.parametrize("name", OURS)
def test_the_source_of_a_model_of_ours_travels_with_it_alone(name, tmp_path):
    made(name).save_pretrained(tmp_path)
    sources = [path.name for path in tmp_path.glob("*.py")]
    assert sources == [f"{type(made(name)).__module__.rpartition('.')[2]}.py"]
    assert "bigmodel" not in (tmp_path / sources[0]).read_text("utf-8").partition('"""')[2].partition("import")[2]
