"""Subword tokenizers of two languages, learnt from the training rows: byte pair encoding (Sennrich et al., 2016,
https://arxiv.org/abs/1508.07909) that gives a text back as it was.

A blank travels as the mark U+2581 before its word (Kudo & Richardson, 2018, https://arxiv.org/abs/1808.06226), so that
decoding is joining. Words of letters, digits one by one and runs of other signs are never merged with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel.experiment import TokenizerConfig
from bigmodel.tasks.tokenizer import check_room, first_steps

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
SPECIAL = [PAD, UNKNOWN, BEGIN, END]
TARGET = "target"  # the folder of the second tokenizer, where there are two
PIECES = r"\u2581?(?:[\p{L}\p{M}]+|\p{N}|[^\u2581\p{L}\p{M}\p{N}]+)|\u2581"
LONGEST_PIECE = 16  # characters of one subword: text without blanks must not become one

Ids = NDArray[np.int32]


class Languages:
    """The tokenizer of the source and that of the target; the same one if they share their vocabulary."""

    def __init__(self, source: Any, target: Any) -> None:
        self.source, self.target = source, target

    @property
    def joint(self) -> bool:
        return self.source is self.target

    @property
    def model_max_length(self) -> int:
        return int(self.source.model_max_length)

    def save_pretrained(self, path: str | Path) -> None:
        self.source.save_pretrained(path)
        if not self.joint:
            self.target.save_pretrained(Path(path) / TARGET)

    def encode_source(self, texts: Sequence[str]) -> list[tuple[Ids, int]]:
        """Ids (T,) as the model reads them, and how many tokens the text has."""
        found, longest = self.source(list(texts), add_special_tokens=True, **PLAIN)["input_ids"], self.model_max_length
        cut = {i: texts[i] for i, ids in enumerate(found) if len(ids) > longest}
        if cut:  # by the tokenizer itself, which knows what must stand at the ends
            shorter = self.source(list(cut.values()), truncation=True, max_length=longest, **PLAIN)["input_ids"]
            cut = dict(zip(cut, shorter, strict=True))
        return [(np.array(cut.get(i, ids), np.int32), len(ids)) for i, ids in enumerate(found)]

    def encode_target(self, texts: Sequence[str]) -> list[Ids]:
        """Ids (U,) with the end, which a text that is cut does not have."""
        found = self.target(text_target=list(texts), add_special_tokens=True, **PLAIN)["input_ids"]
        return [np.array(ids[: self.model_max_length], np.int32) for ids in found]

    def decode(self, ids: Any) -> list[str]:
        """Rows of ids (B, U) -> texts, without what only the model reads."""
        return [text.strip() for text in self.target.batch_decode(ids, skip_special_tokens=True)]


PLAIN = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}


def train(texts: Iterable[str], config: TokenizerConfig, lowercase: bool, max_length: int) -> Any:
    """Texts -> PreTrainedTokenizerFast, which ends a text with </s>."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    check_room(config, SPECIAL)
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(first_steps() + ([normalizers.Lowercase()] if lowercase else []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(split=False), pre_tokenizers.Split(Regex(PIECES), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=SPECIAL,
        limit_alphabet=max(config.vocab_size - len(SPECIAL), 1),
        max_token_length=LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, SPECIAL.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "</s>" in a text is four signs, not its end
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
    )


def is_multilingual(tokenizer: Any) -> bool:
    """Whether a text carries the token of its language, as M2M100, NLLB and mBART have it."""
    return hasattr(tokenizer, "set_tgt_lang_special_tokens")


def known_languages(tokenizer: Any) -> list[str]:
    """The codes of a multilingual tokenizer's languages."""
    return list(getattr(tokenizer, "lang_code_to_id", None) or [t for t in tokenizer.all_special_tokens if t[0] != "<"])


def load(path: Path, max_length: int | None = None) -> Languages:
    """The tokenizers of a folder, reading at most `max_length` tokens. OSError or ValueError where they do not open."""
    from transformers import AutoTokenizer

    source = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    target = source
    if (path / TARGET).is_dir():
        target = AutoTokenizer.from_pretrained(path / TARGET, trust_remote_code=False)
    if max_length is not None:
        source.model_max_length = min(source.model_max_length, max_length)
    return Languages(source, target)
