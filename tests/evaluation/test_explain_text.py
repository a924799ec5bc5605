"""Which tokens decided: the sum is right, the place is right, and a word that decides by construction is found."""

import io
import json
import math

import pytest
import torch
from rich.console import Console

from bigmodel import models, tasks
from bigmodel.errors import ConfigError
from bigmodel.evaluation.explain import explainer
from bigmodel.evaluation.explain_text import explain, render, show
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor

DECIDING = set("good great lovely fine superb bright warm clever bad awful dull poor broken cold stupid weak".split())
MODELS = ["lstm", "gru", "textcnn", "textcnn with n-grams", "n-grams alone", "transformer"]
SMALL = {"type": "lstm", "hidden_size": 8, "embedding_size": 8}


def untaught(model, tokenizer="word", max_length=64, texts=("the soup was cold", "a lovely warm room")):
    """A predictor with random weights, large enough to give answers of some decision."""
    data = {"train": "-", "text": "text", "label": "label", "max_length": max_length}
    data["tokenizer"] = {"type": tokenizer, "min_frequency": 1}
    experiment = Experiment.model_validate({"task": "text-classification", "data": data, "model": model})
    task = tasks.get(experiment.task)
    rows = [{"text": text, "label": str(i)} for i, text in enumerate(texts)]
    processor, learnt = task.fit(lambda: iter(rows), experiment)
    torch.manual_seed(1)
    net = models.build(model, learnt, experiment.task)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return Predictor(experiment.task, net.eval(), processor, {})


@pytest.mark.parametrize("name", MODELS)
def test_the_word_that_makes_a_review_good_or_bad_decides(teach, review_rows, name):
    rows = review_rows(20, seed=7)
    found = explain(teach(name), rows)
    right = [e for e, row in zip(found, rows, strict=True) if e["label"] == row["label"]]
    assert len(right) >= 17
    heaviest = [max(e["tokens"], key=lambda token: token["weight"])["text"] for e in right]
    assert sum(word in DECIDING for word in heaviest) >= 0.9 * len(right), heaviest


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_sum_to_what_the_text_adds_to_the_log_odds(teach, review_rows, name):
    predictor = teach(name)
    for row, found in zip(review_rows(5, seed=3), explain(predictor, review_rows(5, seed=3)), strict=True):
        total = sum(token["weight"] for token in found["tokens"])
        difference = found["log_odds"] - found["log_odds_of_padding"]
        assert abs(total - difference) <= 0.01 * max(1.0, abs(difference)) + 1e-6
        assert found["completeness_error"] == pytest.approx(abs(total - difference), abs=1e-9)
        p = predictor.predict([row])[0]["score"]
        assert 1 / (1 + math.exp(-found["log_odds"])) == pytest.approx(p, abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_explanation_carries_the_answer_and_places_every_token(teach, review_rows, name):
    rows = review_rows(3, seed=5)
    predictor = teach(name)
    for row, answer, found in zip(rows, predictor.predict(rows), explain(predictor, rows), strict=True):
        assert {key: found[key] for key in answer} == answer
        assert [row["text"][token["start"] : token["end"]] for token in found["tokens"]] == row["text"].split()
        assert [token["text"] for token in found["tokens"]] == row["text"].split()
        json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "electra", "albert", "deberta-v2"])
def test_the_weights_sum_up_in_encoders_of_transformers(model_type):
    sizes = {"distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}}.get(
        model_type, {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    )
    predictor = untaught({"type": model_type, **sizes})
    (found,) = explain(predictor, [{"text": "the room was lovely"}])
    assert [token["text"] for token in found["tokens"]] == ["the", "room", "was", "lovely"]
    difference = abs(found["log_odds"] - found["log_odds_of_padding"])
    assert found["completeness_error"] <= 0.01 * max(1.0, difference)


def test_a_pretrained_bert_is_explained_in_its_own_subwords(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "soup", "was", "super", "##b", "cold"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    predictor = Predictor.load(tmp_path)
    (found,) = explain(predictor, [{"text": "The  soup was superb!"}])
    assert [(token["text"], token["start"]) for token in found["tokens"]] == [
        ("The", 0), ("soup", 5), ("was", 10), ("super", 14), ("b", 19), ("!", 20),
    ]  # fmt: skip
    assert found["completeness_error"] < 0.01


def test_an_ngram_shares_its_weight_evenly_among_its_tokens():
    """With bigrams alone, and a bag that is their mean, the weights follow from the vectors by hand."""
    predictor = untaught(
        {"type": "textcnn", "kernel_sizes": [], "ngram_orders": [2], "ngram_buckets": 50, "ngram_size": 4}
    )
    from bigmodel.models.textcnn import hash_ngrams

    ids = torch.tensor([predictor.encode([{"text": "the soup was"}])[0]["input_ids"].tolist()])
    net = predictor.model
    vectors = net.ngrams(hash_ngrams(ids, torch.ones_like(ids, dtype=torch.bool), [2], 50))[0, :2] / 2
    (found,) = explain(predictor, [{"text": "the soup was"}])
    number = int(found["label"])
    direction = net.classifier.weight[number] - net.classifier.weight[1 - number]
    first, second = (vectors @ direction).tolist()
    weights = [token["weight"] for token in found["tokens"]]
    assert weights == pytest.approx([first / 2, (first + second) / 2, second / 2], abs=1e-5)


def test_a_linear_model_is_explained_exactly():
    """A bag of single tokens is linear in its vectors: a token's weight is its own contribution to the log-odds."""
    predictor = untaught(
        {"type": "textcnn", "kernel_sizes": [], "ngram_orders": [1], "ngram_buckets": 50, "ngram_size": 4}
    )
    texts = ["the soup was cold", "the soup was", "soup was cold"]
    (found,) = explain(predictor, [{"text": texts[0]}])
    assert found["completeness_error"] < 1e-5

    def log_odds(text):
        scores = predictor.predict([{"text": text}])[0]["scores"]
        return torch.logit(torch.tensor(scores[found["label"]], dtype=torch.float64)).item()

    bias = found["log_odds_of_padding"]  # of a mean of n parts the others count n / (n - 1) times as much
    without_last = (log_odds(texts[0]) - bias) - (log_odds(texts[1]) - bias) * 3 / 4
    assert found["tokens"][-1]["weight"] == pytest.approx(without_last, abs=1e-4)


def test_more_than_two_labels_are_weighed_against_all_others():
    texts = ["the soup was cold", "a lovely warm room", "a dull film", "the bus was late"]
    predictor = untaught(SMALL, texts=texts)
    (found,) = explain(predictor, [{"text": "a cold soup"}])
    assert 1 / (1 + math.exp(-found["log_odds"])) == pytest.approx(found["score"], abs=1e-5)


def test_characters_capitals_and_accents_keep_their_places():
    predictor = untaught(SMALL, "char", texts=["好吃 İstanbul", "难吃"])
    text = "难吃 İs好"
    (found,) = explain(predictor, [{"text": text}])
    assert "".join(token["text"] for token in found["tokens"] if token["text"]).replace("İİ", "İ") == "难吃 İs好"
    assert all(text[token["start"] : token["end"]] == token["text"] for token in found["tokens"])


def test_a_text_that_is_cut_is_explained_as_far_as_it_is_read():
    predictor = untaught({"type": "transformer", "hidden_size": 64}, max_length=6)
    (found,) = explain(predictor, [{"text": "the soup was cold the room was lovely"}])
    assert [token["text"] for token in found["tokens"]] == ["the", "soup", "was", "cold"]  # and [CLS], [SEP]
    assert (found["truncated"], found["tokens"][-1]["end"]) == (True, 17)
    assert "the first" in plain(found)


def test_labels_that_the_model_does_not_know_and_no_rows_do_no_harm(teach):
    predictor = teach("textcnn")
    assert explain(predictor, []) == []
    assert explain(predictor, [{"text": "a good lamp", "label": "who knows"}])[0]["label"] in ("good", "bad")


def test_a_text_of_nothing_the_model_can_read_is_explained_too(teach):
    (found,) = explain(teach("textcnn with n-grams"), [{"text": "\u200b"}])
    assert len(found["tokens"]) == 1


def test_a_task_that_is_not_explained_is_refused():
    with pytest.raises(ConfigError, match="--explain is for text-classification"):
        explainer("translation")


def test_a_model_that_takes_no_vectors_is_refused():
    sizes = {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    predictor = untaught({"type": "bart", "d_model": 16, **sizes})
    with pytest.raises(ConfigError, match="--explain .*: Passing input embeddings is currently not supported"):
        explain(predictor, [{"text": "the soup was cold"}])


def test_explaining_leaves_the_model_as_it_was(teach, review_rows):
    predictor = teach("textcnn with n-grams")
    before = predictor.predict(review_rows(5, seed=9))
    explain(predictor, review_rows(5, seed=9))
    assert predictor.predict(review_rows(5, seed=9)) == before
    assert not predictor.model.training and not predictor.model.ngrams._forward_hooks
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in predictor.model.parameters())


# ---- show


def plain(found, marked=False, width=80, **options):
    out = io.StringIO()
    Console(file=out, width=width, **options).print(render(found, marked))
    return out.getvalue()


def test_plain_lines_list_the_heaviest_tokens(teach, capsys):
    (found,) = explain(teach("lstm"), [{"text": "my lamp was awful"}])
    show([found])
    out = capsys.readouterr().out
    assert "\x1b" not in out and not any(line.endswith(" ") for line in out.splitlines())
    lines = out.splitlines()
    assert "my lamp was awful" in lines
    table = lines[lines.index("weight  token  characters") + 1 :][:4]
    assert [line.split()[1:] for line in table][0] == ["awful", "12-17"]


def test_a_terminal_gets_the_text_with_the_deciding_tokens_marked(teach):
    (found,) = explain(teach("lstm"), [{"text": "my lamp was awful"}])
    coloured = plain(found, marked=True, force_terminal=True, color_system="truecolor")
    assert "\x1b[30;48;2;0;225;0mawful\x1b[0m" in coloured  # the heaviest, in full green
    assert "against it" in coloured


def test_a_long_chinese_text_stays_within_the_terminal():
    from rich.cells import cell_len

    predictor = untaught(SMALL, "char", texts=["好吃", "难吃"])
    (found,) = explain(predictor, [{"text": "好吃难吃，" * 12}])
    for marked in (False, True):
        assert all(cell_len(line) <= 40 for line in plain(found, marked, width=40).splitlines())


def test_control_characters_of_a_text_do_not_reach_the_terminal():
    predictor = untaught(SMALL, "char", texts=["好吃", "难吃"])
    (found,) = explain(predictor, [{"text": "好\x1b[31m吃"}])
    assert "\x1b" not in plain(found)
