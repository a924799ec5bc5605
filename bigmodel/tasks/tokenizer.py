"""Tokenizers learnt from the training texts, through the `tokenizers` library: characters, words or subwords.

The normaliser travels inside the tokenizer, so whoever opens a model directory reads texts exactly as training did.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel.errors import CheckpointError, ConfigError
from bigmodel.experiment import TokenizerConfig
from bigmodel.tasks import plain

PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = [PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK]
VOCABULARY = "tokenizer.json"
"""The file of a fast tokenizer."""
LONGEST = 4096
"""Tokens read of a text where neither tokenizer nor model knows a limit."""
LOOKED_AT, MOSTLY = 1000, 0.8
"""Texts that are looked at, and the part of them that must be plain, to count words here and not in the library."""
SPECIAL_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")

# Unicode white space, the separators that str.split() cuts at, byte-order marks and NUL.
_SPACE = r"[\s\x00\x1c-\x1f\x85\ufeff]+"
_space = re.compile(_SPACE)
# Han, kana, hangul: scripts written without spaces between words, or in syllable blocks.
_cjk = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f]")


def normalize(text: str) -> str:
    """NFC, white space of any kind as one space, none at the ends: the tokenizer's own first steps."""
    text = unicodedata.normalize("NFC", text)
    if "\0" in text or "\ufeff" in text:
        return _space.sub(" ", text).strip(" ")
    return " ".join(text.split())  # at the white space of _SPACE but these two, in a fifth of the time


def is_blank(text: str) -> bool:
    """Whether normalize() leaves nothing of it."""
    return not text or _space.fullmatch(text) is not None


def is_text(text: str) -> bool:
    """No half of a surrogate pair: no file has one, but what a program sends may."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def some(texts: Iterable[str], num_texts: int, most: int) -> Iterator[str]:
    """At most so many of the texts, evenly chosen."""
    return itertools.islice(texts, 0, None, -(-num_texts // most) if num_texts else 1)


def choose(texts: Iterable[str]) -> str:
    """`char` where at least three of ten letters are Chinese, Japanese or Korean, else `word`; looks at 1,000 texts."""
    sample = "".join(itertools.islice(texts, 1000))
    letters = sum(c.isalpha() for c in sample)
    return "char" if letters and len(_cjk.findall(sample)) >= 0.3 * letters else "word"


def train(texts: Iterable[str], kind: str, config: TokenizerConfig, enclose: bool, max_length: int) -> Any:
    """Texts -> PreTrainedTokenizerFast. `enclose` puts [CLS] and [SEP] around a text, as encoders expect."""
    from tokenizers import Tokenizer, decoders, models, processors, trainers
    from transformers import PreTrainedTokenizerFast

    check_room(config, SPECIAL)
    learnt = {"bpe": models.BPE, "wordpiece": models.WordPiece}.get(kind, models.WordLevel)
    trainer_class = {"bpe": trainers.BpeTrainer, "wordpiece": trainers.WordPieceTrainer}.get(
        kind, trainers.WordLevelTrainer
    )
    tokenizer = Tokenizer(learnt(unk_token=UNKNOWN))
    tokenizer.normalizer = _normalizer(config.lowercase is not False)
    tokenizer.pre_tokenizer = _pre_tokenizer(kind)
    tokenizer.decoder = decoders.WordPiece() if kind == "wordpiece" else None
    # Single characters are never merged away: without their own limit they outgrow a small vocabulary.
    room = max(config.vocab_size - len(SPECIAL), 1)
    limit = {"bpe": {"limit_alphabet": room}, "wordpiece": {"limit_alphabet": max(room // 2, 1)}}.get(kind, {})
    trainer = trainer_class(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=SPECIAL,
        show_progress=False,
        **limit,
    )
    texts, first = iter(texts), list[str]()
    if kind in plain.CUTS:
        first = list(itertools.islice(texts, LOOKED_AT))
        plain_ones = sum(bool(plain.CUTS[kind](text, False)) for text in first)
    if first and plain_ones >= MOSTLY * len(first):
        counts = _counted(itertools.chain(first, texts), kind, tokenizer, config.lowercase is not False)
        tokenizer.model = models.WordLevel(_most_frequent(counts, config), unk_token=UNKNOWN)
        tokenizer.add_special_tokens(SPECIAL)
    else:
        tokenizer.train_from_iterator(itertools.chain(first, texts), trainer)
    if enclose:
        ends = [(token, SPECIAL.index(token)) for token in (CLASSIFY, SEPARATE)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLASSIFY} $A {SEPARATE}", pair=f"{CLASSIFY} $A {SEPARATE} $B {SEPARATE}", special_tokens=ends
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=enclose,  # "[SEP]" in a text is text, and no end of it
        **dict(zip(SPECIAL_NAMES, SPECIAL, strict=False)),
    )


def check_room(config: TokenizerConfig, special: Sequence[str]) -> None:
    """ConfigError where a vocabulary has no entry for a token of a text."""
    if config.vocab_size <= len(special):
        raise ConfigError(
            f"data.tokenizer.vocab_size is {config.vocab_size}, and {len(special)} entries are special tokens: "
            "name more"
        )


def _counted(texts: Iterable[str], kind: str, tokenizer: Any, lower: bool) -> Counter[str]:
    """How often each token stands in the texts; those that are not plain one by one through the library."""
    counts, cut = Counter[str](), plain.CUTS[kind]
    for text in texts:
        if found := cut(text, lower):
            counts.update(found)
        else:
            cleaned = tokenizer.normalizer.normalize_str(text)
            counts.update(token for token, _ in tokenizer.pre_tokenizer.pre_tokenize_str(cleaned))
    return counts


def _most_frequent(counts: Counter[str], config: TokenizerConfig) -> dict[str, int]:
    """The vocabulary that the library's own trainer makes of them."""
    frequent = (token for token, count in counts.items() if count >= config.min_frequency)
    ordered = sorted(frequent, key=lambda token: (-counts[token], token))
    return {token: i for i, token in enumerate([*SPECIAL, *ordered][: config.vocab_size])}


class Read(NamedTuple):
    """What a model reads of a text: enclosed as the tokenizer does, and without what is too long."""

    ids: list[int]
    num_cut: int


def read(texts: Sequence[str], processor: Any) -> list[Read]:
    """The tokens of each text, at least one."""
    found = _read_plain(texts, processor)
    backend, longest = processor.backend_tokenizer, processor.model_max_length
    if backend.truncation is None or backend.truncation["max_length"] != longest:
        backend.enable_truncation(longest)
    rest = [text for text, one in zip(texts, found, strict=True) if one is None]
    encodings = iter(backend.encode_batch_fast(rest) if rest else ())
    return [one or _read(next(encodings), processor) for one in found]


def _read(encoding: Any, processor: Any) -> Read:
    num_cut = sum(len(rest.ids) - sum(rest.special_tokens_mask) for rest in encoding.overflowing)
    return Read(encoding.ids or [processor.unk_token_id], num_cut)


def _read_plain(texts: Sequence[str], processor: Any) -> list[Read | None]:
    """None for a text that is the library's to read."""
    quick = _quick(processor)
    if quick is None:
        return [None] * len(texts)
    most = processor.model_max_length - len(quick.start) - len(quick.end)
    tokens = (quick.tokens(text) for text in texts)
    return [Read([*quick.start, *ids[:most], *quick.end], max(len(ids) - most, 0)) if ids else None for ids in tokens]


class _Quick(NamedTuple):
    """What a tokenizer of ours does to a plain text."""

    tokens: Callable[[str], list[int]]  # none of a text that is not plain
    start: list[int]
    end: list[int]


@lru_cache(4)
def _quick(processor: Any) -> _Quick | None:
    """None for a tokenizer that cleans, or cuts, or looks up otherwise than `train` made those of CUTS."""
    backend = processor.backend_tokenizer
    state = json.loads(backend.to_str())
    model, added = state["model"], [token["content"] for token in state["added_tokens"]]
    kind = next((kind for kind in plain.CUTS if state["pre_tokenizer"] == _state(_pre_tokenizer(kind))), None)
    lower = next((lower for lower in (True, False) if state["normalizer"] == _state(_normalizer(lower))), None)
    if model["type"] != "WordLevel" or kind is None or lower is None or not all("[" in token for token in added):
        return None
    if processor.model_max_length <= backend.num_special_tokens_to_add(False):
        return None
    cut, number = plain.CUTS[kind], _Numbers(model["vocab"], model["vocab"][model["unk_token"]]).__getitem__
    one = backend.encode("a")
    place = one.special_tokens_mask.index(0)
    return _Quick(lambda text: list(map(number, cut(text, lower))), one.ids[:place], one.ids[place + 1 :])


class _Numbers(dict[str, int]):
    def __init__(self, numbers: Mapping[str, int], unknown: int) -> None:
        super().__init__(numbers)
        self._unknown = unknown

    def __missing__(self, token: str) -> int:
        return self._unknown


def _state(part: Any) -> Any:
    return json.loads(part.__getstate__())


def adopt(processor: Any, max_length: int) -> Any:
    """The tokenizer of a checkpoint, with `normalize` as its first steps: rows are cleaned, requests are not.

    Not of its own class, which would build its normaliser anew whenever the model directory is opened.
    """
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    backend = processor.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.normalizer = normalizers.Sequence(first_steps() + ([backend.normalizer] if backend.normalizer else []))
    special = {name: getattr(processor, name) for name in SPECIAL_NAMES if getattr(processor, name) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "</s>" in a text is text
        **special,
    )


def first_steps() -> list[Any]:
    """`normalize`, for the `tokenizers` library."""
    from tokenizers import Regex, normalizers

    return [normalizers.NFC(), normalizers.Replace(Regex(_SPACE), " "), normalizers.Strip()]


def is_foreign(processor: Any) -> bool:
    """Whether it was neither made nor adopted here: its first steps are not those of `normalize`."""
    normalizer = processor.backend_tokenizer.normalizer
    steps = _state(normalizer).get("normalizers", []) if normalizer else []
    return bool(steps[:3] != [_state(step) for step in first_steps()])


def _normalizer(lowercase: bool) -> Any:
    from tokenizers import normalizers

    return normalizers.Sequence(first_steps() + ([normalizers.Lowercase()] if lowercase else []))


def _pre_tokenizer(kind: str) -> Any:
    from tokenizers import pre_tokenizers

    if kind == "char":
        return pre_tokenizers.FixedLength(1)  # blanks too: they part words, and the halves of a title
    return pre_tokenizers.BertPreTokenizer()  # at white space, around each punctuation mark


def load(path: Path, config: Any = None) -> Any:
    """The tokenizer of a folder; of a model's, whose config is given, it reads no more than the model can.

    CheckpointError where transformers has to make one up.
    """
    from transformers import AutoTokenizer

    processor = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if config is None:
        return processor
    if is_made_up(processor):
        raise CheckpointError(f"{path}: there is no tokenizer: put the one that the model was trained with here")
    if not processor.is_fast:
        raise CheckpointError(f"{path}: its tokenizer is a slow one; one with a {VOCABULARY} is needed")
    processor.backend_tokenizer.no_padding()  # as its last call in training may have left it
    processor.backend_tokenizer.no_truncation()
    ensure_padding(processor)
    processor.model_max_length = readable(processor.model_max_length, config, LONGEST)
    return processor


def ensure_padding(processor: Any) -> None:
    """A stranger's tokenizer may have no token that pads: then the one that ends a text does, or the unknown one."""
    if processor.pad_token is None:
        processor.pad_token = processor.eos_token or processor.unk_token


def readable(known: int, config: Any, longest: int) -> int:
    """Tokens read of one text: `longest` where neither tokenizer nor model knows a limit. A stranger's tokenizer may
    know none (1e30), or a larger one than its model."""
    from bigmodel.models.positions import max_tokens

    return min(known, max_tokens(config) or (known if known < 2**31 else longest))


def is_made_up(processor: Any) -> bool:
    """Whether transformers found no tokenizer's files: it then gives one that knows no word."""
    return set(processor.get_vocab()) <= set(processor.all_special_tokens)
