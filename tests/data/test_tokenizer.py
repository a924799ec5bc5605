"""Tokenizers learnt from texts, and labels."""

import itertools
import math
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.errors import ConfigError, DataError
from bigmodel.experiment import Experiment, TokenizerConfig
from bigmodel.tasks import plain, tokenizer
from bigmodel.tasks import text_classification as task
from bigmodel.tasks.base import Refused
from bigmodel.tasks.labels import clean_label, fit_labels

ENGLISH = ["A good film, really good!", "A bad film: really bad.", "The plot isn't good"] * 3
CHINESE = ["味道很好，送餐也快", "太慢了，味道不好", "一直都很好吃😀"] * 3


def learn(texts: list[str], kind: str, enclose: bool = False, max_length: int = 32, **config: Any) -> Any:
    return tokenizer.train(texts, kind, TokenizerConfig(**config), enclose, max_length)


def tokens(processor: Any, text: str) -> list[str]:
    sample = task.encode([{"text": tokenizer.normalize(text)}], processor, {})[0]
    found: list[str] = processor.convert_ids_to_tokens(sample["input_ids"].tolist())
    return found


@pytest.mark.parametrize("text", ["one two three four", "один два ½ ёж"])
def test_a_vocabulary_without_a_token_is_refused(text: str) -> None:
    data = {"train": "unused", "text": "said", "label": "y", "tokenizer": {"type": "word"}}
    asked = Experiment.model_validate({"task": "text-classification", "data": data, "model": {"type": "lstm"}})
    with pytest.raises(DataError, match="column 'said': no token occurs data.tokenizer.min_frequency=2 times"):
        task.fit(lambda: [{"text": text, "label": "a"}, {"text": "five", "label": "b"}], asked)


def test_a_text_that_spells_what_encloses_it_is_text():
    processor = learn(["good [SEP] film"] * 2, "word", enclose=True)
    assert tokens(processor, "Good [SEP] film") == ["[CLS]", "good", "[", "sep", "]", "film", "[SEP]"]


def test_a_vocabulary_of_special_tokens_alone_is_refused() -> None:
    data = {"train": "unused", "text": "x", "label": "y", "tokenizer": {"type": "word", "vocab_size": 5}}
    asked = Experiment.model_validate({"task": "text-classification", "data": data, "model": {"type": "lstm"}})
    with pytest.raises(ConfigError, match="data.tokenizer.vocab_size is 5, and 5 entries are special tokens"):
        task.fit(lambda: [{"text": "one one", "label": "a"}, {"text": "five five", "label": "b"}], asked)


# ---- plain texts, which the library does not see: it is the oracle

letters = st.sampled_from("abcXYZ  '.,-_/\\@é–’”ßЯжй\u0130ΣςǅİªµÀ123[]味道，。！Ａ１\u0300\u00a0\u200b\x7f😀")
texts = st.lists(
    st.text(letters, max_size=30) | st.sampled_from(["[PAD] a", "a [UNK]", "Don't, stop!", " "]), max_size=8
)


@pytest.mark.parametrize("kind", ["word", "char"])
@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("enclose", [True, False])
@settings(max_examples=40)
@given(texts=texts)
def test_plain_texts_have_the_tokens_that_the_library_finds(kind, lowercase, enclose, texts):
    processor = processor_of(kind, lowercase, enclose)
    found = tokenizer.read(texts, processor)
    oracle = processor.backend_tokenizer.encode_batch(texts)
    assert [read.ids for read in found] == [encoding.ids or [processor.unk_token_id] for encoding in oracle]
    cut = [sum(len(rest.ids) - sum(rest.special_tokens_mask) for rest in encoding.overflowing) for encoding in oracle]
    assert [read.num_cut for read in found] == cut


@lru_cache
def processor_of(kind: str, lowercase: bool, enclose: bool) -> Any:
    corpus = ["Don't, stop! a abc XYZ é–’ Яжй 12", "味道，好 。！", "a.b-c_d/e@f"] * 2
    return learn(corpus, kind, enclose, max_length=6, lowercase=lowercase)


def test_every_character_that_counts_as_plain_is_cut_and_folded_as_by_the_library():
    for kind, cut in plain.CUTS.items():
        backend = processor_of(kind, True, False).backend_tokenizer
        for text in (f"a{chr(code)}Z" for code in range(0x20, 0x10000) if not 0xD800 <= code < 0xE000):
            if found := cut(text, True):
                cleaned = backend.normalizer.normalize_str(text)
                assert found == [token for token, _ in backend.pre_tokenizer.pre_tokenize_str(cleaned)], ascii(text)


@pytest.mark.parametrize("kind", ["word", "char"])
@pytest.mark.parametrize("config", [{}, {"vocab_size": 20}, {"min_frequency": 4}, {"lowercase": False}])
def test_words_that_are_counted_here_are_the_vocabulary_that_the_library_learns(kind, config, monkeypatch):
    corpus = [*ENGLISH, *CHINESE[:1], "A [MASK] here, İstanbul"] * 3
    counted = learn(corpus, kind, **config)
    monkeypatch.setattr(tokenizer, "MOSTLY", 2.0)
    assert counted.backend_tokenizer.to_str() == learn(corpus, kind, **config).backend_tokenizer.to_str()


# ---- cleaning


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\t\r\n b\u3000c\u00a0d\u2028e ", "a b c d e"),
        ("\ufeffa\0b\x1fc\x85", "a b c"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u212b \u1112\u1161\u11ab", "\u00c5 \ud55c"),
        ("\ufb01", "\ufb01"),  # compatibility characters stay: NFC, not NFKC
        ("👩\u200d💻", "👩\u200d💻"),
        (" \u200b ", "\u200b"),
        (" \0\ufeff\n", ""),
    ],
)
def test_normalize(raw: str, clean: str) -> None:
    assert tokenizer.normalize(raw) == clean


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"])))
def test_the_tokenizer_itself_cleans_as_we_do_and_cleaning_twice_changes_nothing(text: str) -> None:
    clean = tokenizer.normalize(text)
    assert steps.normalize_str(text) == clean == tokenizer.normalize(clean)
    assert unicodedata.is_normalized("NFC", clean)


def test_the_tokenizer_itself_cleans_every_character_as_we_do() -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(characters), 1000):
        text = "".join(f"{c}x" for c in characters[start : start + 1000])
        assert steps.normalize_str(text) == tokenizer.normalize(text)


steps = learn(["a"], "word", lowercase=False).backend_tokenizer.normalizer


# ---- which tokens


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (ENGLISH, "word"),
        (CHINESE, "char"),
        (["とても美味しかったです", "배달이 너무 늦었습니다"], "char"),
        (["Очень хороший фильм"], "word"),
        (["一 two three four five six seven"], "word"),
        (["12345 !!!"], "word"),
        ([], "word"),
    ],
)
def test_characters_or_words_are_chosen_by_looking(texts: list[str], kind: str) -> None:
    assert tokenizer.choose(texts) == kind


@pytest.mark.parametrize(
    ("kind", "texts", "text", "expected"),
    [
        ("char", CHINESE, "味道很好😀龘", ["味", "道", "很", "好", "😀", "[UNK]"]),
        ("char", ENGLISH, " a  good ", ["a", " ", "g", "o", "o", "d"]),
        ("char", ["e\u0301a", "ēa\u0323\u0301"] * 2, "e\u0301a", ["é", "a"]),
        ("word", ENGLISH, "A GOOD  film, isn't unseen", ["a", "good", "film", ",", "isn", "'", "t", "[UNK]"]),
        ("wordpiece", ENGLISH, "good", ["good"]),
        ("bpe", ENGLISH, "good", ["good"]),
    ],
)
def test_tokens(kind: str, texts: list[str], text: str, expected: list[str]) -> None:
    assert tokens(learn(texts, kind), text) == expected


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_unseen_words_are_cut_into_known_pieces(kind: str) -> None:
    words = ["lower", "newer", "wider", "low", "new", "wide"] * 5
    pieces = tokens(learn(words, kind), "lowide")
    assert len(pieces) > 1 and "[UNK]" not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == "lowide"


@pytest.mark.parametrize("kind", ["char", "word", "bpe", "wordpiece"])
def test_capitals_and_the_size_of_the_vocabulary_are_as_asked(kind: str) -> None:
    assert len(learn(ENGLISH, kind, vocab_size=20, min_frequency=1)) <= 20
    processor = learn(ENGLISH, kind, lowercase=False, min_frequency=1)
    assert "A" in processor.get_vocab() and tokens(processor, "A") == ["A"]
    assert processor.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("kind", ["char", "word", "bpe", "wordpiece"])
@pytest.mark.parametrize(
    "text", ["", "\ufeff", "👩\u200d💻🏽", "\u0301\u0301", "龘" * 500, "x" * 5000, "\U000e0001", "a" * 101]
)
def test_any_text_gives_at_least_one_token(kind: str, text: str) -> None:
    sample = task.encode([{"text": text}], learn(ENGLISH + CHINESE, kind), {})[0]
    assert 1 <= len(sample["input_ids"]) <= 32 and sample["input_ids"].dtype == np.int32


@pytest.mark.parametrize("kind", ["char", "word", "bpe", "wordpiece"])
def test_a_saved_tokenizer_reads_raw_text_as_training_read_the_cleaned(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    processor = learn(ENGLISH + CHINESE, kind, enclose=True)
    processor.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    for raw in ("  A good\t\tfilm\ufeff ", "味道\u3000很好", "cafe\u0301 GOOD"):
        wanted = task.encode([{"text": tokenizer.normalize(raw)}], processor, {})[0]["input_ids"].tolist()
        assert opened(raw)["input_ids"] == wanted
    assert (opened.model_max_length, opened.pad_token_id, opened.unk_token_id) == (32, 0, 1)


@pytest.mark.parametrize("enclose", [False, True])
@pytest.mark.parametrize("length", [1, 29, 30, 31, 32, 33, 64, 65, 200])
def test_what_is_cut_is_counted(enclose: bool, length: int) -> None:
    processor = learn(ENGLISH, "word", enclose)
    sample = task.encode([{"text": "good " * length}], processor, {})[0]
    whole = length + 2 * enclose
    assert len(sample["input_ids"]) == min(whole, 32)
    assert sample["num_tokens"] == whole
    if enclose:
        assert sample["input_ids"][[0, -1]].tolist() == [processor.cls_token_id, processor.sep_token_id]


# ---- what a row must be


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "the text is nothing"),
        (5, "the text is int 5"),
        (b"good", "the text is bytes b'good'"),
        (["good"], "the text is list"),
        ("", "the text is empty"),
        (" \ufeff\0\n", "the text is empty"),
        ("a \ud83d", "half of a surrogate pair"),
    ],
)
def test_a_text_that_is_none_is_refused_with_its_column(text: Any, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        task.clean({"review": text}, {"text": "review"})
    assert refused.value.column == "review"


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("good", "good"),
        ("  very \t good ", "very good"),
        ("cafe\u0301", "caf\u00e9"),
        (1, "1"),
        (1.0, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (np.float64(2.0), "2"),
    ],
)
def test_a_label_is_text(value: Any, label: str) -> None:
    assert clean_label(value, "stars") == label


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "there is no label"), ("", "empty"), (" ", "empty"), (math.nan, "a word or a number"), ([1], "not list")],
)
def test_what_is_no_label_is_refused_with_its_column(value: Any, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        clean_label(value, "stars")
    assert refused.value.column == "stars"


def test_labels_are_numbered_in_their_own_order() -> None:
    assert fit_labels(["10", "9", "-1", "9"], "stars")["id2label"] == {0: "-1", 1: "9", 2: "10"}
    assert fit_labels(["pos", "neg", "2"], "stars")["label2id"] == {"2": 0, "neg": 1, "pos": 2}
    for labels in itertools.permutations(["nan", "3", "1", "2", "inf"]):  # words, though Python has them as numbers
        assert list(fit_labels(labels, "stars")["label2id"]) == ["1", "2", "3", "inf", "nan"]


@settings(max_examples=50)
@given(st.lists(st.text(min_size=1).filter(tokenizer.normalize), min_size=2, unique_by=tokenizer.normalize))
def test_every_label_comes_back_from_its_number(labels: list[str]) -> None:
    names = [clean_label(label, "label") for label in labels]
    learnt = fit_labels([*names, *names], "label")  # a label that no other row has would be refused, of many
    assert [learnt["id2label"][learnt["label2id"][name]] for name in names] == names


@pytest.mark.parametrize(("labels", "says"), [(["a", "a"], "only 'a'"), ([], "nothing")])
def test_one_class_is_too_few(labels: list[str], says: str) -> None:
    with pytest.raises(DataError, match=f"column 'stars': a classifier needs at least two labels.*{says}"):
        fit_labels(labels, "stars")
