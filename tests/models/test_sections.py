"""What is wrong with a `model:` section, said before any weight exists."""

import copy

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config

from bigmodel import models
from bigmodel.models import fields, positions
from bigmodel.models.transformer import encoder_defaults
from bigmodel.tasks import text_generation

RIGHT = [
    {"type": "lstm"},
    {"type": "gru", "hidden_size": 7, "num_hidden_layers": 3, "bidirectional": False, "pooling": "last"},
    {"type": "textcnn", "kernel_sizes": [], "ngram_orders": [1, 2]},
    {"type": "textcnn", "ngram_orders": [1, 2], "ngram_size": 0, "ngram_scale": 2},
    {"type": "textcnn", "dropout": 0},  # a whole number where a fraction stands
    {"type": "transformer"},
    {"type": "transformer", "hidden_size": 200},  # the default of heads goes with the width
    {"type": "transformer", "hidden_size": 96, "num_attention_heads": 3, "hidden_act": "relu"},
    {"type": "bert", "num_hidden_layers": 2},
    {"type": "gpt2", "n_embd": 24, "n_head": 4},
    {"type": "distilbert", "hidden_size": 24, "n_heads": 4},  # the common name and the type's own
]
WRONG = [  # section, {key: part of the message}
    ({"type": "lstm", "hiden_size": 3}, {"hiden_size": "model has no field 'hiden_size'. Did you mean 'hidden_size'?"}),
    ({"type": "lstm", "num_heads": 3}, {"num_heads": "Fields of lstm: bidirectional, dropout, embedding_dropout"}),
    ({"type": "lstm", "hidden_size": "100"}, {"hidden_size": "'100', but must be a whole number"}),
    ({"type": "lstm", "hidden_size": 100.0}, {"hidden_size": "100.0, but must be a whole number"}),
    ({"type": "lstm", "hidden_size": True}, {"hidden_size": "True, but must be a whole number"}),
    ({"type": "lstm", "hidden_size": None}, {"hidden_size": "None, but must be a whole number"}),
    ({"type": "lstm", "hidden_size": [3]}, {"hidden_size": "[3], but must be a whole number"}),
    ({"type": "lstm", "hidden_size": -4}, {"hidden_size": "-4, but must be at least 1"}),
    ({"type": "lstm", "hidden_size": 0}, {"hidden_size": "0, but must be at least 1"}),
    ({"type": "lstm", "dropout": 1.5}, {"dropout": "1.5, but a probability of dropping is at least 0 and below 1"}),
    ({"type": "lstm", "dropout": -0.1}, {"dropout": "at least 0 and below 1"}),
    ({"type": "lstm", "dropout": float("nan")}, {"dropout": "at least 0 and below 1"}),
    ({"type": "lstm", "dropout": "much"}, {"dropout": "'much', but must be a number"}),
    ({"type": "gpt2", "attn_pdrop": 1.5}, {"attn_pdrop": "at least 0 and below 1"}),
    ({"type": "lstm", "bidirectional": "yes"}, {"bidirectional": "'yes', but must be true or false"}),
    ({"type": "lstm", "pooling": "maxx"}, {"pooling": "one of last, mean, max. Did you mean 'max'?"}),
    ({"type": "lstm", "initializer_range": 0}, {"initializer_range": "0, but must be above 0"}),
    ({"type": "lstm", 1: 2}, {"1": "model has no field '1'"}),
    ({"type": "textcnn", "ngram_size": -1, "ngram_scale": 0}, {"ngram_size": "at least 0", "ngram_scale": "above 0"}),
    ({"type": "textcnn", "kernel_sizes": 3}, {"kernel_sizes": "3, but must be a list of whole numbers"}),
    ({"type": "textcnn", "kernel_sizes": [0]}, {"kernel_sizes": "[0], but must be at least 1"}),
    ({"type": "textcnn", "kernel_sizes": [2.5]}, {"kernel_sizes": "a list of whole numbers"}),
    ({"type": "textcnn", "kernel_sizes": []}, {"kernel_sizes": "[]: kernel_sizes and ngram_orders are both empty"}),
    ({"type": "transformer", "hidden_act": "gelo"}, {"hidden_act": "there is no 'gelo'. Did you mean 'gelu'?"}),
    ({"type": "transformer", "hidden_size": 100, "num_attention_heads": 3},
     {"num_attention_heads": "model.hidden_size 100 is not divisible by num_attention_heads 3. It is by 1, 2"}),
    ({"type": "distilbert", "dim": 30, "n_heads": 4}, {"n_heads": "model.dim 30 is not divisible by n_heads 4"}),
    ({"type": "gpt2", "n_embd": 10}, {"n_embd": "not divisible by num_attention_heads 12"}),
    ({"type": "gpt2", "n_embd": 24, "hidden_size": 12}, {"hidden_size": "and model.n_embd are one field"}),
    ({"type": "lstm", "vocab_size": 3}, {"vocab_size": "follows from the training data and cannot be set here"}),
    ({"type": "gpt2", "n_positions": 8}, {"n_positions": "follows from data.max_length and cannot be set here"}),
    ({"type": "lsmt"}, {"type": "model has no type 'lsmt'. Did you mean 'lstm'? Types: lstm, gru, textcnn"}),
    ({"type": "robert"}, {"type": "Did you mean 'roberta'?"}),
    ({"type": "vit"}, {"type": "model.type vit has no form for text-classification"}),
    ({"type": "fnet"}, {"type": "model.type fnet answers a text otherwise when others are asked with it"}),
    ({"type": 3}, {"type": "model.type is 3, but must be a word"}),
    ({"pretrained": 3}, {"pretrained": "model.pretrained is 3, but must be a word"}),
    ({"hidden_size": 3}, {"type": "model needs either type or pretrained; found neither"}),
    ({"type": "lstm", "pretrained": "x"}, {"type": "model needs either type or pretrained; found both"}),
    ({"type": "lstm", "hiden_size": 3, "dropout": 2, "pooling": 1},
     {"hiden_size": "no field", "dropout": "below 1", "pooling": "one of last, mean, max"}),
]  # fmt: skip


@pytest.mark.parametrize("section", RIGHT, ids=str)
def test_nothing_is_wrong_with_a_right_section(section):
    assert models.problems(section, "text-classification") == []


@pytest.mark.parametrize(("section", "expected"), WRONG, ids=lambda value: str(value)[:60])
def test_every_mistake_of_a_section_is_named(section, expected):
    found = models.problems(section, "text-classification")
    assert [key for key, _ in found] == list(expected)
    for (_, message), part in zip(found, expected.values(), strict=True):
        assert part in message


@pytest.mark.parametrize("width", [1, 16, 64, 100, 127, 128, 200, 250, 768, 1000])
def test_the_encoders_own_defaults_fit_any_width(width):
    heads = encoder_defaults({"hidden_size": width})["num_attention_heads"]
    assert width % heads == 0 and (width // heads >= 64 or heads == 1)


def test_a_config_is_made_of_common_names_or_its_own():
    assert fields.make(GPT2Config, {"hidden_size": 24}).n_embd == fields.make(GPT2Config, {"n_embd": 24}).n_embd == 24


@pytest.mark.parametrize("name", ["bert", "roberta", "longformer", "mpnet"])
def test_a_table_of_positions_holds_the_longest_text(name):
    learnt = {"vocab_size": 30, "pad_token_id": 0, "max_length": 20, "id2label": {0: "a", 1: "b"}}
    section = {
        "type": name,
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
    }
    model = models.build(section, learnt, "text-classification")
    assert positions.max_tokens(model.config) == 20
    assert positions.max_tokens(BertConfig(max_position_embeddings=7)) == 7
    assert model.eval()(**model.dummy_inputs).logits.shape[-1] == 2


def test_ours_alone_want_no_special_tokens_around_a_text():
    names = (*models.architectures("text-classification"), "bert")
    assert [models.is_ours({"type": name}) for name in names] == [True] * 3 + [False] * 2
    assert not models.is_ours({"pretrained": "lstm"})


AHEAD = "it sees the tokens that it is to predict, as an encoder does"
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LEARNT = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_length": 20}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "bert", **WIDTHS}, ("type", f"{AHEAD} (is_decoder is False)")),
        ({"type": "roberta", **WIDTHS}, ("type", f"{AHEAD} (is_decoder is False)")),
        ({"type": "electra", "embedding_size": 16, **WIDTHS}, ("type", f"{AHEAD} (is_decoder is False)")),
        ({"type": "xlm", "emb_dim": 16, "n_layers": 1, "n_heads": 2}, ("type", f"{AHEAD} (causal is False)")),
        (
            {
                "type": "cpmant",
                "hidden_size": 16,
                "num_attention_heads": 2,
                "dim_head": 8,
                "dim_ff": 16,
                "num_hidden_layers": 1,
            },
            ("type", AHEAD),
        ),
        (
            {"type": "gemma", "head_dim": 8, "num_key_value_heads": 1, "use_bidirectional_attention": True, **WIDTHS},
            ("use_bidirectional_attention", f"{AHEAD} (use_bidirectional_attention is True)"),
        ),
        ({"type": "bert", "is_decoder": True, **WIDTHS}, None),
        ({"type": "xlm", "emb_dim": 16, "n_layers": 1, "n_heads": 2, "causal": True}, None),
        ({"type": "gpt_neox", **WIDTHS}, None),
        ({"type": "bart", "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}, None),
        ({"type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, None),
        ({"type": "transformer", "hidden_size": 16}, None),
        ({"type": "lstm_lm"}, None),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_what_sees_the_next_token_cannot_write_it(section, message):
    """Whether it does is tried out: the last token is another, and what stands before answers otherwise."""
    found = models.problems(section, "text-generation")
    assert [(key, message[1] in says) for key, says in found] == ([(message[0], True)] if message else [])
    torch.manual_seed(0)
    model = models.build(section, LEARNT, "text-generation").eval()
    ids = torch.arange(8)[None] + 5
    with torch.no_grad():
        logits = [
            model(input_ids=given, use_cache=False).logits[:, :7]
            for given in (ids, ids.index_fill(1, torch.tensor(7), 33))
        ]
    assert torch.allclose(*logits, rtol=0, atol=1e-6) == (message is None)
    assert (message[1] in text_generation.unfit(model.config)) if message else text_generation.unfit(model.config) == ""


def test_a_checkpoint_that_sees_the_next_token_cannot_write_it(tmp_path):
    BertForMaskedLM(BertConfig(vocab_size=40, **WIDTHS)).save_pretrained(tmp_path)
    section = {"pretrained": str(tmp_path)}
    ((key, message),) = models.problems(section, "text-generation")
    assert (key, message) == (
        "pretrained",
        f"model.pretrained: {tmp_path} cannot be used: {AHEAD} (is_decoder is False)",
    )
    assert models.problems(section | {"is_decoder": True}, "text-generation") == []


@pytest.mark.parametrize(
    ("size", "section", "stages"),
    [
        (5, {}, 1), (8, {}, 1), (9, {}, 2), (16, {}, 2), ([16, 17], {}, 3), (28, {}, 3), (224, {}, 3),
        (16, {"hidden_sizes": [8, 16], "depths": [1, 1]}, 2), (28, {"hidden_sizes": [8] * 3, "depths": [1] * 3}, 3),
        (4, {}, None), (16, {"hidden_sizes": [8] * 3, "depths": [1] * 3}, None), (16, {"depths": [1] * 3}, None),
        (16, {"hidden_sizes": [8, 16], "depths": [1, 1], "downsample_in_first_stage": True}, None),
    ],
)  # fmt: skip
def test_a_resnet_leaves_more_than_one_place_of_an_image(size, section, stages):
    section = {"type": "resnet", **section}
    assert models.problems(section, "image-classification") == []
    learnt = {"image_size": size, "num_channels": 3, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    if stages is None:
        with pytest.raises(fields.ModelError, match="leave a single place of an image of"):
            models.build(section, learnt, "image-classification")
        return
    model = models.build(section, learnt, "image-classification")
    height, width = (size, size) if isinstance(size, int) else size
    logits = model.train()(torch.rand(1, 3, height, width)).logits
    assert len(model.config.hidden_sizes) == len(model.config.depths) == stages and logits.isfinite().all()


@pytest.mark.parametrize("model_type", ["t5", "longt5"])
def test_a_t5_knows_how_a_text_begins(model_type):
    section = {"type": model_type, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    ids = torch.tensor([[5, 6, 7, 3]])
    writer = models.build(section, LEARNT | {"decoder_start_token_id": 9}, "translation").eval()
    assert writer.generate(input_ids=ids, max_length=5)[0, 0] == 9
    if model_type == "t5":
        assert models.build(section, LEARNT | labels, "text-classification")(input_ids=ids).logits.isfinite().all()


def test_a_cnn_has_as_many_filters_as_gradients_are_right_for():
    section = {"type": "cnn", "depths": [1, 1]}
    for sizes in ([7, 8], [2, 16]):
        ((key, message),) = models.problems(section | {"hidden_sizes": sizes}, "image-classification")
        assert key == "type" and "every stage before the last needs at least 8 filters" in message
    assert models.problems({"type": "cnn", "hidden_sizes": [4], "depths": [1]}, "image-classification") == []
    section["hidden_sizes"] = [8, 4]
    assert models.problems(section, "image-classification") == []
    learnt = {"image_size": 28, "num_channels": 3, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    model = models.build(section | {"dropout": 0}, learnt, "image-classification")
    pixels, gradients = torch.rand(8, 3, 28, 28), []
    for exact in (model, copy.deepcopy(model).double()):
        exact(pixel_values=pixels.to(exact.dtype), labels=torch.arange(8) % 2).loss.backward()
        gradients.append(exact.blocks[1].shortcut.weight.grad.double())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
