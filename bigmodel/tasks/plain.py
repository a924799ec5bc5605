"""Plain texts cut into words and characters as the `tokenizers` library cuts them, at several times its speed.

The library works on strings that remember where every character came from. Most texts hold no character for which more
than a regular expression is needed: letters that are one in any normal form and fold one to one, and the usual
punctuation. All other texts are the library's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_LETTERS = "À-ÖØ-öø-ÿА-яЁё"
_MARKS = "‘’“”–—…"
_CHINESE = "、。《》「」『』【】！（），：；？～\u4e00-\u9fff"
_ASCII = " -Z\\\\-~"  # without [, with which the special tokens begin
_words_only = re.compile(f"[{_ASCII}{_LETTERS}{_MARKS}]*")
_chars_only = re.compile(f"[{_ASCII}{_LETTERS}{_MARKS}{_CHINESE}]*")
_punctuation = re.compile(f"[!-/:-@\\[-`{{-~{_MARKS}]")  # what BERT takes for it


def words(text: str, lower: bool) -> list[str]:
    """Between blanks and around each punctuation mark; none of a text that is not plain."""
    if not _words_only.fullmatch(text):
        return []
    for mark in set(_punctuation.findall(text)):
        text = text.replace(mark, f" {mark} ")
    return (text.lower() if lower else text).split()


def characters(text: str, lower: bool) -> list[str]:
    """All of them, single blanks too; none of a text that is not plain."""
    clean = _chars_only.fullmatch(text) and "  " not in text and text == text.strip(" ")
    return list(text.lower() if lower else text) if clean else []


CUTS: dict[str, Callable[[str, bool], list[str]]] = {"word": words, "char": characters}
