"""Translation: subwords that give a text back, one vocabulary or two, pretrained models, beams, bad rows."""

import csv
import itertools

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bigmodel import pipeline
from bigmodel.errors import CheckpointError, ConfigError
from bigmodel.evaluation import bleu
from bigmodel.evaluation import translation as report
from bigmodel.evaluation.evidence import Evidence
from bigmodel.evaluation.translation import nearest
from bigmodel.experiment import TokenizerConfig
from bigmodel.predictor import Predictor
from bigmodel.tasks import subwords, translation
from bigmodel.tasks.base import Refused
from bigmodel.tasks.tokenizer import normalize
from bigmodel.training.fit import fit

TEXTS = ["Ein Mann (35) läuft, schnell!", "A man's dog: 1,234 x", "l'été, c'est 好"]
BART = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
NUMBERS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four"}


@pytest.fixture(scope="module")
def languages():
    learnt = subwords.train(TEXTS * 2, TokenizerConfig(vocab_size=120, min_frequency=1), False, 64)
    return subwords.Languages(learnt, learnt)


@given(st.lists(st.sampled_from(sorted(set("".join(TEXTS)))), min_size=1, max_size=40))
def test_a_text_of_known_characters_comes_back_as_it_was(languages, letters):
    text = normalize("".join(letters))
    assert languages.decode(languages.encode_target([text])) == [text]


def test_the_end_in_a_text_is_four_signs_and_no_end(languages):
    (ids, _), (plain, _) = languages.encode_source(["a </s> x", "a x"])
    assert list(ids).count(3) == list(plain).count(3) == 1


def test_a_long_text_is_cut_and_counted_and_keeps_its_end(languages):
    ((ids, num_tokens),) = languages.encode_source(["x " * 200])
    assert len(ids) == 64 and ids[-1] == 3 and num_tokens > 200


@pytest.fixture
def experiment(tmp_path):
    """Numbers in German and English, to be changed with `section={...}`."""
    rows = [
        (" ".join(words), " ".join(NUMBERS[word] for word in words)) for words in itertools.product(NUMBERS, repeat=3)
    ]
    with open(tmp_path / "numbers.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("de", "en"), *rows])
    tree = {
        "task": "translation",
        "data": {
            "train": str(tmp_path / "numbers.csv"), "valid": str(tmp_path / "numbers.csv"), "split": {"test": 0},
            "source": "de", "target": "en", "max_length": 16, "tokenizer": {"vocab_size": 60, "min_frequency": 1},
        },
        "model": {"d_model": 32, "num_hidden_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0},
        "optim": {"lr": 0.01},
        "train": {"epochs": 30, "batch_tokens": 200, "validate_every": 1000, "precision": "fp32", "threads": 1},
        "output": str(tmp_path / "run"),
    }  # fmt: skip

    def made(**changes):
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(tree | changes | {"data": tree["data"] | changes.get("data", {})}))
        return pipeline.read_experiment(file)

    return made


def test_two_vocabularies_and_beams_survive_the_model_directory(experiment):
    tokenizer = {"vocab_size": 60, "min_frequency": 1, "joint": False}
    run = fit(experiment(data={"tokenizer": tokenizer}, decode={"beams": 3}))
    predictor = Predictor.load(run.model)
    assert not predictor.processor.joint and predictor.model.generation_config.num_beams == 3
    assert predictor.predict([{"source": "zwei drei eins"}]) == [{"translation": "two three one"}]
    assert run.info["metrics"]["chrf"] > 80


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_a_pretrained_seq2seq_model_is_trained_further(experiment, languages, tmp_path, model_type):
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    bart = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in BART.items()}
    sizes = {
        "t5": {"d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        "bart": {**bart, "max_position_embeddings": 32, "decoder_start_token_id": 2, "forced_eos_token_id": 3},
    }
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(languages.source), "d_model": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, **ids, **sizes[model_type]))
    model.generation_config.num_beams = 4
    model.save_pretrained(tmp_path / "found")
    languages.save_pretrained(tmp_path / "found")
    train = {"epochs": 1, "batch_size": 16, "precision": "fp32", "threads": 1}
    run = fit(experiment(model={"pretrained": str(tmp_path / "found")}, train=train))
    predictor = Predictor.load(run.model)
    questions = [{"source": "eins zwei"}, {"source": "vier"}]
    assert predictor.predict(questions) == [predictor.predict([question])[0] for question in questions]
    assert predictor.model.generation_config.num_beams == 1, "the beams of what it was made from are its own"
    lora = {"pretrained": str(tmp_path / "found"), "lora": {"rank": 2}}
    adapter = fit(experiment(model=lora, train=train, decode={"beams": 3}, output=str(tmp_path / "adapter")))
    assert Predictor.load(adapter.model).model.generation_config.num_beams == 3


@pytest.fixture(params=["nllb", "mbart50", "mbart"])
def multilingual(request, tmp_path):
    """A tiny model of many languages with its tokenizer -> its folder, and the codes of German and English."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

    letters = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *sorted(set("".join([*NUMBERS, *NUMBERS.values()])))]
    if request.param == "nllb":
        ids = NllbTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    else:
        made = {"mbart": MBartTokenizer, "mbart50": MBart50Tokenizer}[request.param]
        ids = made(vocab=[(letter, -1.0) for letter in letters])
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in BART.items()}
    known = {"vocab_size": len(ids), "d_model": 32, "max_position_embeddings": 64, "pad_token_id": ids.pad_token_id}
    config = AutoConfig.for_model("m2m_100" if request.param == "nllb" else "mbart", **sizes, **known)
    config.decoder_start_token_id = None if request.param == "mbart" else ids.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "found")
    ids.save_pretrained(tmp_path / "found")
    return tmp_path / "found", *(("deu_Latn", "eng_Latn") if request.param == "nllb" else ("de_DE", "en_XX"))


def test_a_model_of_many_languages_is_told_two_and_keeps_them(experiment, multilingual):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    source, german, english = multilingual
    section = {"pretrained": str(source), "src_lang": german, "tgt_lang": english}
    train = {"epochs": 6, "batch_size": 16, "precision": "fp32", "threads": 1}
    run = fit(experiment(model=section, train=train, data={"max_length": 24}))
    predictor = Predictor.load(run.model)
    assert (predictor.processor.source.src_lang, predictor.processor.source.tgt_lang) == (german, english)
    found = predictor.predict([{"source": text} for text in ("eins zwei drei", "vier vier eins")])

    ids, model = AutoTokenizer.from_pretrained(run.model), AutoModelForSeq2SeqLM.from_pretrained(run.model)
    asked = ids(["eins zwei drei", "vier vier eins"], return_tensors="pt", padding=True)
    assert ids.convert_tokens_to_ids(german) in asked["input_ids"][0]
    written = model.generate(**asked, max_length=predictor.processor.model_max_length + 1)
    assert (written[:, :2] == ids.convert_tokens_to_ids(english)).any(1).all()
    assert found == [{"translation": text.strip()} for text in ids.batch_decode(written, skip_special_tokens=True)]


def test_a_model_of_many_languages_asks_for_two_that_it_knows(experiment, multilingual, languages, tmp_path):
    source, german, _ = multilingual
    with pytest.raises(ConfigError, match=r"between \d+ languages: name model.src_lang and model.tgt_lang, such as"):
        fit(experiment(model={"pretrained": str(source)}))
    with pytest.raises(ConfigError, match=f"model.src_lang: the tokenizer of .* has no 'de' of .*{german}"):
        fit(experiment(model={"pretrained": str(source), "src_lang": "de", "tgt_lang": german}))
    (source / "bigmodel.json").write_text('{"task": "translation"}')
    with pytest.raises(CheckpointError, match="none is named: train it with model.pretrained, model.src_lang"):
        Predictor.load(source)
    languages.save_pretrained(source)
    with pytest.raises(ConfigError, match="model.src_lang: the tokenizer of .* knows no languages. Leave the field"):
        fit(experiment(model={"pretrained": str(source), "src_lang": german}))
    with pytest.raises(ConfigError, match="model.tgt_lang is 3, but must be a word"):
        experiment(model={"pretrained": str(source), "tgt_lang": 3})


def test_rows_that_cannot_be_used_name_their_column():
    with pytest.raises(Refused, match="the text is empty") as refused:
        translation.clean({"de": "a", "en": "  "}, {"source": "de", "target": "en"})
    assert refused.value.column == "en"


def test_other_tokenizers_are_refused_with_the_one_there_is(experiment):
    with pytest.raises(ConfigError, match="data.tokenizer.type is word: translation writes text, and learns bpe alone"):
        fit(experiment(data={"tokenizer": {"type": "word"}}))


def test_bleu_is_what_sacrebleu_says_and_tokens_are_lower_case():
    found, wanted = ["The cat sat on the mat.", "A man's hat."], ["The cat is on the mat.", "A man's hat."]
    scores = bleu.scores(found, wanted)
    import sacrebleu

    assert scores["bleu"] == sacrebleu.corpus_bleu(found, [wanted]).score
    assert bleu.tokenized("A man's hat.") == "a man ' s hat ."
    assert "version:" in bleu.signatures(bleu.Counting())["bleu"]
    assert bleu.counting(wanted) == bleu.Counting("13a", effective_order=False)


@pytest.mark.parametrize(
    ("wanted", "worse", "signature"),
    [
        (["他昨天去了北京大学的图书馆。", "我喜欢喝茶。"], ["他昨天去北京。", "我喝茶。"], "eff:no|tok:zh|"),
        (["今日はいい天気ですね。", "私は学生です。"], ["今日は雨ですね。", "私です。"], "eff:no|tok:char|"),
        (["ฉันรักคุณ", "วันนี้อากาศดี"], ["ฉันรัก", "วันนี้"], "eff:no|tok:char|"),
        (["guten Tag", "ja", "danke schön"], ["guten Morgen", "ja", "danke"], "eff:yes|tok:13a|"),
    ],
)
def test_texts_without_blanks_and_short_ones_are_told_apart_by_bleu(wanted, worse, signature):
    for name in ("bleu", "bleu_lower_tokens"):
        assert bleu.scores(wanted, wanted)[name] == pytest.approx(100)
        assert 0 < bleu.scores(worse, wanted)[name] < 90
    assert signature in bleu.signatures(bleu.counting(wanted))["bleu"]


def test_how_is_counted_is_chosen_once_for_the_texts_of_a_validation():
    wanted = ["guten Tag", "ein Mann mit einem roten Hut"]
    bleu.scores(wanted, wanted)
    chosen = bleu._suiting.cache_info().misses
    bleu.scores(wanted[::-1], list(wanted))
    assert bleu._suiting.cache_info().misses == chosen
    bleu.scores(wanted, wanted[:1] * 2)
    assert bleu._suiting.cache_info().misses == chosen + 1


def test_the_nearest_row_is_the_one_with_the_same_words():
    known = [{"source": "ein roter Hund", "target": "a red dog"}, {"source": "zwei Katzen", "target": "two cats"}]
    assert nearest(known, ["der rote Hund ein", "Katzen zwei"]) == ["a red dog", "two cats"]


@pytest.mark.parametrize(("training", "reason"), [(None, "are not at hand"), (list, "there are no training rows")])
def test_a_report_without_training_rows_has_no_nearest_one(training, reason):
    rows = [{"source": "ein roter Hund", "target": "a red dog"}, {"source": "zwei Katzen", "target": "two cats"}]
    answers = [{"translation": row["target"], "loss": 1.0, "target_tokens": 4} for row in rows]
    evidence = Evidence(translation, rows, lambda i: ("test.csv", i + 2), answers, training, lambda line: None)
    found = report.analyse(evidence)
    assert reason in found["baselines"]["nearest"]["reason"] and found["baselines"]["copy"]["bleu"] < 50
    assert found["also_in_training"] == (None if training is None else 0)
    shown = list(report.render({**found, "metrics": translation.score(answers, rows)}))
    assert len(shown) > 5
