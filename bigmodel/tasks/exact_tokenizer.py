"""Tokenizers for text that is written again: what is encoded comes back to the last blank and line end.

char   every character of the training texts; one that they do not have becomes the unknown token
byte   the 256 bytes of UTF-8: no text is unknown
bpe    byte pairs over those bytes (Sennrich et al., 2016, https://arxiv.org/abs/1508.07909; Radford et al., 2019)

Nothing is normalised, and nothing stands around a text: documents are enclosed where they are packed.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel.errors import first_line
from bigmodel.experiment import TokenizerConfig

END, UNKNOWN = "<|end|>", "<|unknown|>"
FEW_CHARACTERS = 256
"""Of an alphabet for which `auto` learns characters."""
LOOKED_AT = 1000
"""Texts that `auto` looks at."""
Ids = NDArray[np.int32]
_byte = re.compile("<0x[0-9A-F]{2}>")  # what SentencePiece makes of a character that it does not know


def choose(texts: Iterable[str]) -> str:
    """`char` where the first texts have an alphabet of at most 256 characters, else `bpe`."""
    alphabet = set[str]().union(*itertools.islice(texts, LOOKED_AT))
    return "char" if len(alphabet) <= FEW_CHARACTERS else "bpe"


def train(texts: Iterable[str], kind: str, config: TokenizerConfig, max_length: int) -> Any:
    """Texts -> PreTrainedTokenizerFast."""
    from transformers import PreTrainedTokenizerFast

    made = _characters(texts, config.vocab_size) if kind == "char" else _bytes(texts, kind, config)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="left",  # as `generate` wants it: what comes next stands beside its text
        bos_token=END,
        eos_token=END,
        pad_token=END,
        **({"unk_token": UNKNOWN} if kind == "char" else {}),
    )


def _characters(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    common = sorted(character for character, _ in counts.most_common(max(vocab_size - 2, 1)))
    vocabulary = {token: i for i, token in enumerate([END, UNKNOWN, *common])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(1)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (END, UNKNOWN)])
    return tokenizer


def _bytes(texts: Iterable[str], kind: str, config: TokenizerConfig) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bpe")
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257 if kind == "byte" else config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([] if kind == "byte" else texts, trainer)
    return tokenizer


class Encoder:
    """Texts to ids (T,) int32, without special tokens: by a table where a character, or byte, is a token."""

    def __init__(self, processor: Any) -> None:
        self._processor, self._backend = processor, processor.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        # a text that spells a special token is text
        self._backend.encode_special_tokens = True
        self._characters = _character_table(processor)
        self._bytes = None if self._characters is not None else _byte_table(processor)

    def __call__(self, text: str) -> Ids:
        if self._characters is not None:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            return self._characters[np.minimum(codes, len(self._characters) - 1)]
        if self._bytes is not None:
            return self._bytes[np.frombuffer(text.encode(), np.uint8)]
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def num_first_bytes(self, text: str, ids: Ids) -> int:
        """How many bytes of a text its first token is, which need not be whole characters."""
        if self._characters is not None:
            return len(text[0].encode())
        token = self._processor.convert_ids_to_tokens(int(ids[0]))
        if self._backend.decoder is not None and b'"ByteLevel"' in self._backend.decoder.__getstate__():
            return len(token)
        return 1 if _byte.fullmatch(token) else len(self._processor.decode(ids[:1]).encode())


def chat(processor: Any, messages: Sequence[Mapping[str, str]], answer: bool) -> Ids:
    """Messages as the tokenizer's own template writes them, `answer` where the model is to go on: in transformers'
    sandbox, and what spells a special token in a message is text. ValueError where the template refuses them."""
    from jinja2 import TemplateError

    try:
        ids = processor.apply_chat_template(
            messages, add_generation_prompt=answer, sanitize_control_tokens=True, return_dict=False
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as why:
        reason = first_line(why)[:200].rstrip(".")
        raise ValueError(f"the model's chat template does not take these messages: {reason}") from None
    finally:
        processor.backend_tokenizer.encode_special_tokens = True  # the same as Encoder has it
    return np.array(ids, np.int32)


def _character_table(processor: Any) -> Ids | None:
    """Code point -> id, the last entry for all beyond; None where a token is not a character."""
    vocabulary: dict[str, int] = processor.get_vocab()
    if UNKNOWN not in vocabulary or any(len(token) != 1 for token in vocabulary.keys() - {END, UNKNOWN}):
        return None
    codes = {ord(token): i for token, i in vocabulary.items() if len(token) == 1}
    table = np.full(max(codes, default=0) + 2, vocabulary[UNKNOWN], np.int32)
    table[list(codes)] = list(codes.values())
    return table


def _byte_table(processor: Any) -> Ids | None:
    """Byte -> id; None where there are other tokens."""
    vocabulary: dict[str, int] = processor.get_vocab()
    if len(vocabulary) != 257 or END not in vocabulary:
        return None
    return np.array([vocabulary[character] for character in _byte_alphabet()], np.int32)


def _byte_alphabet() -> Sequence[str]:
    """The character that stands for each byte in byte-level tokens (GPT-2's bytes_to_unicode)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = itertools.count(256)
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
