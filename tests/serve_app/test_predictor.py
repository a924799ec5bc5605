"""The predictor: answers that do not depend on their batch, directories that prove themselves."""

import json
import subprocess
import sys

import pytest
import torch
from kernels import skipped_without_kernel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from bigmodel.errors import CheckpointError, ConfigError
from bigmodel.predictor import Predictor, batches

MODELS = {
    "transformer": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "lstm": {"hidden_size": 16, "embedding_size": 16},
    "gru": {"hidden_size": 16, "embedding_size": 16, "bidirectional": False, "pooling": "mean"},
    "textcnn": {"num_filters": 8, "embedding_size": 16, "ngram_orders": [1, 2], "ngram_buckets": 64, "ngram_size": 8},
}
TEXTS = ["good", "a bad film " * 9, "", "the boat", "bad " * 60, "so very good today", "boat"]


@pytest.fixture(scope="module", params=MODELS)
def folder(request, make_model):
    return make_model({"type": request.param, **MODELS[request.param]})


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 5e-3)])
def test_an_answer_does_not_depend_on_what_else_is_asked(folder, precision, bound):
    predictor = Predictor.load(folder, precision=precision)
    rows = [{"text": text} for text in TEXTS * 3]
    with skipped_without_kernel():
        together = predictor.predict(rows)
    for few in (1, 70, 10_000):
        for one, other in zip(predictor.predict(rows, max_tokens=few), together, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=bound)
            assert one.keys() == other.keys()


def test_answers_of_the_faster_form_are_those_of_the_model(make_model):
    predictor = Predictor.load(make_model())
    assert not predictor.pads
    rows = [{"text": text} for text in TEXTS]
    samples = predictor.encode(rows)
    with torch.inference_mode():
        plain = predictor.task.predict(predictor.model, predictor.task.collate(samples, predictor.processor), None)
    for one, other in zip(predictor.predict(rows), plain, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


SHORT = """
import resource, sys
from bigmodel.predictor import Predictor

predictor, rows = Predictor.load(sys.argv[1]), [{"text": "boat good film bad " * 12}] * 96
sizes, ask = [], predictor.task.predict

def noted(model, batch, processor):
    sizes.append(len(batch["input_ids"]))
    return ask(model, batch, processor)

predictor.task.predict = noted
alone = predictor.predict(rows[:1])[0]
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]), resource.RLIM_INFINITY))
answers = predictor.predict(rows, max_tokens=1_000_000)
assert len(answers) == 96 and all(abs(answer["score"] - alone["score"]) < 1e-5 for answer in answers)
print(sizes)
"""


def test_short_of_memory_batches_are_halved(make_model):
    model = make_model({"type": "transformer", "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 8192})
    done = subprocess.run([sys.executable, "-c", SHORT, str(model), "60000000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[:3] == [1, 96, 48]


def test_a_predictor_made_after_a_step_answers_with_the_new_weights(make_model):
    old = Predictor.load(make_model())
    before = old.predict([{"text": "good"}])[0]
    with torch.no_grad():
        old.model.classifier.bias.add_(torch.tensor([3.0, -3.0]))
        old.model.bert.encoder.layer[0].attention.self.query.weight.mul_(-2)
    new = Predictor(old.name, old.model, old.processor, {}).predict([{"text": "good"}])[0]
    assert abs(new["score"] - before["score"]) > 1e-3 or new["label"] != before["label"]


def test_a_directory_reproduces_its_golden_answers(folder):
    for precision in ("auto", "fp32", "bf16"):
        with skipped_without_kernel():
            assert Predictor.load(folder, precision=precision).check_golden() == 8


def test_a_bf16_directory_reproduces_its_golden_answers(make_model):
    folder = make_model(precision="bf16")
    assert Predictor.load(folder).precision == "bf16"
    for precision in ("auto", "fp32"):
        assert Predictor.load(folder, precision=precision).check_golden() == 8


def tamper(folder, name="classifier.bias", by=1e-6):
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] + by
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_weight_that_was_changed_is_found_however_little(make_model):
    folder = make_model()
    tamper(folder)
    with pytest.raises(CheckpointError, match="model.safetensors: these are not the weights that training wrote"):
        Predictor.load(folder).check_golden()


def test_answers_that_are_not_reproduced_are_found_where_no_digest_is(make_model):
    folder = make_model()
    info = json.loads((folder / "bigmodel.json").read_text())
    (folder / "bigmodel.json").write_text(json.dumps({k: v for k, v in info.items() if k != "weights"}))
    tamper(folder, by=torch.tensor([0.5, -0.5]))
    with pytest.raises(CheckpointError, match="does not reproduce the stored answers: 0.* instead of 0"):
        Predictor.load(folder).check_golden()


def test_an_answer_that_is_no_number_reproduces_nothing(make_model):
    predictor = Predictor.load(make_model())
    with torch.no_grad():
        predictor.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="does not reproduce the stored answers: nan instead of 0"):
        predictor.check_golden()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_are_stored_in_halves_answer_in_fp32(folder, dtype, tmp_path):
    predictor = Predictor.load(folder)
    predictor.model.to(dtype).save_pretrained(tmp_path)
    predictor.processor.save_pretrained(tmp_path)
    rounded = predictor.model.to(torch.float32)
    opened = Predictor.load(tmp_path)
    assert {weight.dtype for weight in opened.model.parameters()} == {torch.float32}
    rows = [{"text": text} for text in TEXTS]
    assert opened.predict(rows) == Predictor(opened.name, rounded, opened.processor, {}).predict(rows)


def test_two_labels_as_likely_as_each_other_may_change_places(make_model):
    folder = make_model()
    golden = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    first = golden[0]["answer"]
    first |= {"label": "good" if first["label"] == "bad" else "bad"}
    first["scores"] = dict.fromkeys(first["scores"], 0.5)
    (folder / "golden.jsonl").write_text(json.dumps(golden[0] | {"answer": first | {"score": 0.5}}) + "\n")
    predictor = Predictor.load(folder)
    with torch.no_grad():
        predictor.model.classifier.weight.zero_()
        predictor.model.classifier.bias.zero_()
    assert predictor.check_golden() == 1


def test_batches_hold_each_row_once_and_no_more_tokens_than_asked():
    lengths = [3, 9, 1, 1, 7, 30, 2, 9]
    for padded in (True, False):
        found = list(batches(lengths, 20, padded))
        assert sorted(i for batch in found for i in batch) == list(range(8))
        for batch in found:
            cost = max(lengths[i] for i in batch) * len(batch) if padded else sum(lengths[i] for i in batch)
            assert cost <= 20 or len(batch) == 1
    assert len(list(batches(lengths, 40, False))) < len(list(batches(lengths, 40, True)))


def test_a_folder_that_is_no_model_is_said_to_be_none(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        Predictor.load(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"has no config.json \(notes.txt\)"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_labels": 1}, "it answers with a number"),
        ({"num_labels": 3, "problem_type": "regression"}, "it answers with a number"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "it answers with any number of its labels"),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, None),
        ({"num_labels": 2}, None),
    ],
)
def test_a_sequence_classifier_that_does_something_else_is_refused(changes, reason, tmp_path, make_model):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    tokens = AutoTokenizer.from_pretrained(make_model())
    config = BertConfig(vocab_size=len(tokens), **small, **changes)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    if reason is None:
        assert Predictor.load(tmp_path).predict([{"text": "good"}])[0]["label"].startswith("LABEL_")
        return
    with pytest.raises(ConfigError, match=f"this model is not for text-classification: {reason}") as refused:
        Predictor.load(tmp_path)
    assert "\n" not in str(refused.value)
