"""Tokenizers learnt from the training texts, through the `tokenizers` library: characters, words or subwords.

The normaliser travels inside the tokenizer, so whoever opens a model directory reads texts exactly as training did.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bigmodel.errors import CheckpointError
from bigmodel.experiment import TokenizerConfig

PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = [PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK]
LONGEST = 4096
"""Tokens read of a text where neither tokenizer nor model knows a limit."""
SPECIAL_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")

# Unicode white space, the separators that str.split() cuts at, byte-order marks and NUL.
_SPACE = r"[\s\x00\x1c-\x1f\x85\ufeff]+"
_space = re.compile(_SPACE)
# Han, kana, hangul: scripts written without spaces between words, or in syllable blocks.
_cjk = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f]")


def normalize(text: str) -> str:
    """NFC, white space of any kind as one space, none at the ends: the tokenizer's own first steps."""
    return _space.sub(" ", unicodedata.normalize("NFC", text)).strip(" ")


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
    tokenizer.train_from_iterator(texts, trainer)
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
        **dict(zip(SPECIAL_NAMES, SPECIAL, strict=False)),
    )


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
        **special,
    )


def first_steps() -> list[Any]:
    """`normalize`, for the `tokenizers` library."""
    from tokenizers import Regex, normalizers

    return [normalizers.NFC(), normalizers.Replace(Regex(_SPACE), " "), normalizers.Strip()]


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
    if processor.pad_token is None:
        processor.pad_token = processor.eos_token or processor.unk_token
    processor.model_max_length = _readable(processor.model_max_length, config)
    return processor


def _readable(known: int, config: Any) -> int:
    """Tokens read of one text. A stranger's tokenizer may know no limit (1e30), or a larger one than its model."""
    from bigmodel.models.positions import max_tokens

    return min(known, max_tokens(config) or (known if known < 2**31 else LONGEST))


def is_made_up(processor: Any) -> bool:
    """Whether transformers found no tokenizer's files: it then gives one that knows no word."""
    return set(processor.get_vocab()) <= set(processor.all_special_tokens)
