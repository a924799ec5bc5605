"""Checkpoints made here, of several families, fine-tuned through the whole path: `model: {pretrained: DIR}`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from bigmodel import models
from bigmodel.errors import ConfigError
from bigmodel.experiment import Experiment, TokenizerConfig
from bigmodel.models.init import initialize
from bigmodel.predictor import Predictor
from bigmodel.tasks import tokenizer
from bigmodel.training.fit import fit

TASK = "text-classification"
LABELS = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
TEXTS = [f"{word} {thing}" for word in ("good", "bad") for thing in ("film", "book", "song", "meal")] * 2
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES = {
    "bert": SMALL | {"max_position_embeddings": 16},
    "roberta": SMALL | {"max_position_embeddings": 18},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 16},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "llama": SMALL | {"num_key_value_heads": 1, "max_position_embeddings": 16},
    "lstm": {"hidden_size": 8, "embedding_size": 8},
}
BART = {"d_model": 16, "max_position_embeddings": 32} | {
    f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")
}
Checkpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """checkpoint(family, name=value ...): a new directory with config, weights and tokenizer; random weights."""

    def write(family: str, head: bool = True, **fields: Any) -> Path:
        path = tmp_path_factory.mktemp(family)
        processor = learn_tokenizer(family)
        fields = {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id, "bos_token_id": 2,
                  "eos_token_id": 3} | (FAMILIES | {"bart": BART})[family] | fields  # fmt: skip
        auto = AutoModelForSequenceClassification if head else transformers.AutoModel
        torch.manual_seed(7)
        auto.from_config(AutoConfig.for_model(family, **fields)).save_pretrained(path)
        processor.save_pretrained(path)
        return path

    return write


def learn_tokenizer(family: str) -> PreTrainedTokenizerFast:
    config = TokenizerConfig(min_frequency=1)
    learnt = tokenizer.train(TEXTS, "word", config, enclose=family not in ("gpt2", "llama", "lstm"), max_length=512)
    if family not in ("gpt2", "llama"):
        return learnt
    decoder = PreTrainedTokenizerFast(tokenizer_object=learnt.backend_tokenizer, eos_token="[SEP]")
    assert decoder.pad_token is None
    return decoder


def experiment(source: Path, tmp_path: Path, model: dict[str, Any] | None = None, **data: Any) -> Experiment:
    file = tmp_path / "texts.jsonl"
    rows = [{"text": text, "label": "good" if "good" in text else "bad"} for text in TEXTS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = {"valid": str(file), "split": {"test": 0}}
    return Experiment.model_validate({
        "task": TASK,
        "data": {"train": str(file), "text": "text", "label": "label", **split, **data},
        "model": {"pretrained": str(source), **(model or {})},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "threads": 1},
        "output": str(tmp_path / "run"),
    })  # fmt: skip


def build(source: Path, model: dict[str, Any] | None = None, learnt: dict[str, Any] | None = None) -> Any:
    built = models.build({"pretrained": str(source), **(model or {})}, LABELS | (learnt or {}), TASK)
    initialize(built, "xavier", seed=0)
    return built


def differing(model: Any, source: Path) -> set[str]:
    stored = load_file(source / "model.safetensors")
    return {
        key for key, tensor in model.state_dict().items() if key not in stored or not torch.equal(tensor, stored[key])
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_of_fine_tuning_start_from_the_checkpoint(family, checkpoint, tmp_path):
    source = checkpoint(family, id2label={0: "x", 1: "y", 2: "z"})
    run = fit(experiment(source, tmp_path))
    assert run.info["progress"]["step"] == 2
    before, after = load_file(source / "model.safetensors"), load_file(run.model / "model.safetensors")
    moved = {
        key: (after[key] - before[key]).abs().max().item() for key in before if before[key].shape == after[key].shape
    }
    assert len(moved) >= len(before) - 2, "only the head has another shape"
    assert 0 < max(moved.values()) < 0.01, "two steps of Adam move a weight by two learning rates at most"

    answers = Predictor.load(run.model).predict([{"text": text} for text in TEXTS])
    classify = transformers.pipeline(TASK, str(run.model))
    for answer, other in zip(answers, classify(TEXTS), strict=True):
        assert answer["label"] == other["label"] and answer["score"] == pytest.approx(other["score"], abs=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_head_for_other_labels_is_drawn_anew_and_nothing_else(family, checkpoint):
    source = checkpoint(family, id2label={0: "no", 1: "yes"})
    assert 1 <= len(differing(build(source), source)) <= 2  # the bias of a new head is 0, as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_for_the_same_labels_is_kept(family, checkpoint):
    source = checkpoint(family, **LABELS)
    assert differing(build(source), source) == set()


def test_a_body_without_a_head_gets_one(checkpoint):
    source = checkpoint("bert", head=False)
    stored = load_file(source / "model.safetensors")
    model = build(source)
    assert {name for name, _ in model.named_parameters()} - {f"bert.{name}" for name in stored} == model.fresh
    assert model.fresh == {"classifier.weight", "classifier.bias"}


def test_the_new_head_follows_from_the_seed(checkpoint):
    source = checkpoint("bert", id2label={0: "no", 1: "yes"})
    torch.manual_seed(1)
    first = build(source)
    torch.manual_seed(2)
    assert torch.equal(first.classifier.weight, build(source).classifier.weight)


def test_what_a_label_meant_before_goes_with_it(checkpoint):
    source = checkpoint("bert", id2label={0: "stars"}, problem_type="regression")
    assert build(source).config.problem_type is None


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_text_longer_than_the_checkpoint_can_read_is_cut_there(family, checkpoint, tmp_path):
    run = fit(experiment(checkpoint(family), tmp_path))
    answer = Predictor.load(run.model).predict([{"text": "good film " * 50}])[0]
    assert answer["truncated"] and answer["tokens_read"] == 16


def test_a_field_that_leaves_the_weights_alone_is_changed(checkpoint):
    source = checkpoint("bert")
    section = {"pretrained": str(source), "hidden_dropout_prob": 0.25}
    assert models.problems(section, TASK) == []
    model = build(source, {"hidden_dropout_prob": 0.25})
    assert model.config.hidden_dropout_prob == 0.25 and model.bert.embeddings.dropout.p == 0.25


def test_fields_that_need_other_weights_are_named_each(checkpoint):
    source = str(checkpoint("bert"))
    found = models.problems(
        {"pretrained": source, "hidden_size": 32, "hidden_act": "relu", "num_hidden_layers": 2}, TASK
    )
    assert found == [
        ("hidden_size", f"model.hidden_size 32 does not fit the weights of {source}, made with 16"),
        ("num_hidden_layers", f"model.num_hidden_layers 2 does not fit the weights of {source}, made with 1"),
    ]


def refusal(source: Path | str) -> str:
    found = models.problems({"pretrained": str(source)}, TASK)
    assert [key for key, _ in found] == ["pretrained"]
    return found[0][1]


def test_weights_in_pickles_are_not_read(checkpoint):
    source = checkpoint("bert")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert refusal(source) == f"model.pretrained: {source} holds no weights (*.safetensors; other formats are not read)"


def test_the_folder_of_a_run_is_not_its_model_but_says_where_that_is(checkpoint, tmp_path):
    shutil.copytree(checkpoint("bert"), tmp_path / "model")
    assert refusal(tmp_path).endswith(f"other formats are not read). Did you mean {tmp_path}/model?")


def test_code_that_comes_with_a_checkpoint_is_not_run(checkpoint, tmp_path):
    source = checkpoint("bert")
    trap = tmp_path / "trapped"
    (source / "trap.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.Config", "AutoModelForSequenceClassification": "trap.Model"}
    (source / "config.json").write_text(json.dumps(config))
    assert type(build(source)).__module__.startswith("transformers.")
    (source / "config.json").write_text(json.dumps(config | {"model_type": "trap"}))
    assert (
        "of the type 'trap', which transformers does not have; code that comes with a checkpoint is not run"
        in refusal(source)
    )
    assert not trap.exists()


def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub():
    for source in ("./nowhere", "/no/where", "~/nowhere", "runs/no/where", ""):
        assert refusal(source) == f"model.pretrained: there is no directory '{source}'"
    assert refusal("no/such-model").startswith(
        "model.pretrained: 'no/such-model' is no directory here, and no hub name"
    )


def test_a_misspelt_directory_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/reviews/model").mkdir(parents=True)
    none = "model.pretrained: there is no directory"
    assert refusal("runs/reviws") == f"{none} 'runs/reviws'. Did you mean runs/reviews?"
    assert refusal("./runs/reviews/modle") == f"{none} './runs/reviews/modle'. Did you mean runs/reviews/model?"
    assert refusal("runs/other") == (
        f"{none} 'runs/other'. It is not looked for on the hub, as there is a folder 'runs' here"
    )


def test_a_model_for_another_task_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint("bert"), tmp_path / "vit")
    AutoConfig.for_model("vit").save_pretrained(tmp_path / "vit")
    assert refusal(tmp_path / "vit") == f"model.pretrained: {tmp_path}/vit is a vit, which has no form for {TASK}"


@pytest.mark.parametrize("damage", ["{", '{"model_type": "bert", "hidden_size": "wide"}', "[]", "null"])
def test_a_damaged_config_is_one_message(damage, checkpoint):
    source = checkpoint("bert")
    (source / "config.json").write_text(damage)
    assert refusal(source).startswith(f"model.pretrained: {source} ")


def test_damaged_weights_are_one_message(checkpoint, tmp_path):
    source = checkpoint("bert")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=f"model.pretrained: {source} cannot be opened"):
        fit(experiment(source, tmp_path))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(checkpoint, tmp_path):
    source = checkpoint("bert", vocab_size=5)
    with pytest.raises(ConfigError, match=rf"{source}: its tokenizer has \d+ tokens, its model 5"):
        fit(experiment(source, tmp_path))


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint, tmp_path):
    source = checkpoint("bert")
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match=f"model.pretrained: '{source}' has no tokenizer"):
        fit(experiment(source, tmp_path))


def test_another_tokenizer_under_the_same_name_is_prepared_anew(checkpoint, tmp_path):
    source = checkpoint("bert")
    first = fit(experiment(source, tmp_path)).info["fingerprint"]
    processor = AutoTokenizer.from_pretrained(source)
    processor.backend_tokenizer.normalizer = None
    processor.save_pretrained(source)
    (tmp_path / "again").mkdir()
    assert fit(experiment(source, tmp_path / "again")).info["fingerprint"] != first


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_checkpoints_own_kind_of_tokenizer_reads_a_request_as_training_read_the_row(family, checkpoint, tmp_path):
    """GPT-2's takes every space for a token, and its class knows no normaliser."""
    source = checkpoint(family, vocab_size=300)
    for file in source.glob("tokenizer*"):
        file.unlink()
    own_tokenizer(family).save_pretrained(source)
    run = fit(experiment(source, tmp_path))
    predictor = Predictor.load(run.model)
    raw = ["good  film", "\tgood film\n", "good\u3000fi\u00adlm", "bad\r\nbook \x00 ", "cafe\u0301  song"]
    clean = [predictor.task.clean({"text": text}, {"text": "text"}) for text in raw]
    asked, read = predictor.predict([{"text": text} for text in raw]), predictor.predict(clean)
    assert asked == read
    classify = transformers.pipeline(TASK, str(run.model))
    for answer, other in zip(asked, classify(raw), strict=True):
        assert answer["label"] == other["label"] and answer["score"] == pytest.approx(other["score"], abs=1e-6)


def own_tokenizer(family: str) -> Any:
    if family == "gpt2":
        alphabet = sorted(ByteLevel.alphabet())
        vocab = {token: number for number, token in enumerate([*alphabet, "<|endoftext|>"])}
        return transformers.GPT2TokenizerFast(vocab=vocab, merges=[])
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return transformers.BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})


def test_a_tokenizer_that_was_saved_with_padding_reads_no_padding(checkpoint):
    source = checkpoint("bert", **LABELS)
    rows = [{"text": text} for text in ("good film", "bad", "a good book")]
    before = Predictor.load(source).predict(rows)
    file = source / "tokenizer.json"
    padding = {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    truncation = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    stored = json.loads(file.read_text()) | {"padding": padding, "truncation": truncation}
    file.write_text(json.dumps(stored))
    assert Predictor.load(source).predict(rows) == before


@pytest.mark.parametrize("tuned", [False, True])
def test_a_text_that_spells_a_special_token_is_text(tuned, checkpoint, tmp_path):
    source = checkpoint("bart", vocab_size=300, eos_token_id=2, bos_token_id=0, pad_token_id=1, **LABELS)
    for file in source.glob("tokenizer*"):
        file.unlink()
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet])}
    transformers.RobertaTokenizerFast(vocab=vocab, merges=[]).save_pretrained(source)
    predictor = Predictor.load(fit(experiment(source, tmp_path)).model if tuned else source)
    spelt, _ = predictor.encode([{"text": "good </s> film"}, {"text": "good film"}])
    assert spelt["input_ids"].tolist().count(2) == 1 and len(spelt["input_ids"]) == len("<good </s> film>")
    assert len(predictor.predict([{"text": "good </s> film"}, {"text": "good film"}])) == 2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_that_names_no_padding_answers_texts_of_any_lengths(family, checkpoint):
    source = checkpoint(family, pad_token_id=None, **LABELS)
    rows = [{"text": text} for text in ("good", "bad film", "a good book and song")]
    predictor = Predictor.load(source)
    assert predictor.model.config.pad_token_id == predictor.processor.pad_token_id
    alone = [predictor.predict([row])[0]["score"] for row in rows]
    assert [answer["score"] for answer in predictor.predict(rows)] == pytest.approx(alone, abs=1e-6)


def test_tokens_cannot_become_unknown_where_no_token_is(checkpoint, tmp_path):
    source = checkpoint("gpt2", vocab_size=300)
    processor = own_tokenizer("gpt2")
    processor.unk_token = None
    PreTrainedTokenizerFast(tokenizer_object=processor.backend_tokenizer, eos_token="<|endoftext|>").save_pretrained(
        source
    )
    with pytest.raises(ConfigError, match="^data.augment.mask is 0.1, and this tokenizer has no unknown token"):
        fit(experiment(source, tmp_path, augment={"mask": 0.1}))
