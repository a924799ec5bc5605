"""How near translations come to those of people: BLEU and chrF by sacrebleu, which says how it counted.

Papineni et al., 2002, doi:10.3115/1073083.1073135; Popović, 2015, doi:10.18653/v1/W15-3049; Post, 2018,
https://arxiv.org/abs/1804.08771. Older papers count BLEU over the lower-cased tokens of a tokenizer of their own: such
a figure stands beside, for comparison with theirs alone.

The wanted texts alone decide how is counted, so that all answers to them are counted alike: sacrebleu's `13a`; `zh` for
Chinese, `char` for Japanese, Thai and other scripts without blanks. Where most texts are shorter than four tokens the
order of n-grams is the highest that occurs: there would be none of four, and BLEU 0 of any answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

RESAMPLES = 1000
ORDER = 4
HAN, KANA = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f", r"\u3040-\u30ff"
_unspaced = rf"[{HAN}{KANA}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"  # and Thai, Lao, Burmese, Khmer
_without_blanks, _kana, _han = re.compile(_unspaced), re.compile(f"[{KANA}]"), re.compile(f"[{HAN}]")
_token = re.compile(rf"{_unspaced}|(?:(?!{_unspaced})\w)+|[^\w\s]")


class Counting(NamedTuple):
    tokenize: str = "13a"
    effective_order: bool = False


def counting(wanted: Sequence[str]) -> Counting:
    """What suits the texts: of sacrebleu's tokenizers the one for their script, and whether they are short. Chosen once
    for those that are wanted again, as a validation's are."""
    return _suiting(tuple(wanted))


@lru_cache(maxsize=1)
def _suiting(wanted: tuple[str, ...]) -> Counting:
    from sacrebleu.metrics.bleu import BLEU

    text = "".join(wanted)
    kind = "13a"
    if len(_without_blanks.findall(text)) >= 0.3 * max(sum(c.isalpha() for c in text), 1):
        han, kana = len(_han.findall(text)), len(_kana.findall(text))
        kind = "zh" if han > 9 * kana else "char"
    cut = BLEU(tokenize=kind).tokenizer
    short = sum(len(cut(text).split()) < ORDER for text in wanted)
    return Counting(kind, 2 * short > len(wanted))


def scores(found: Sequence[str], wanted: Sequence[str], how: Counting | None = None) -> dict[str, float]:
    """BLEU of the texts as they are, chrF, and BLEU of their lower-cased tokens, all from 0 to 100."""
    how = how or counting(wanted)
    lower = [[tokenized(text) for text in texts] for texts in (found, wanted)]
    return {
        "bleu": _corpus(bleu(how), found, wanted),
        "chrf": _corpus(chrf(), found, wanted),
        "bleu_lower_tokens": _corpus(bleu_of_tokens(how), *lower),
    }


def intervals(found: Sequence[str], wanted: Sequence[str], how: Counting) -> dict[str, list[float]]:
    """Of each of `scores`, its 95 % interval: sacrebleu's bootstrap over rows, of 1,000 resamples."""
    lower = [[tokenized(text) for text in texts] for texts in (found, wanted)]
    told = {
        "bleu": (bleu(how), found, wanted),
        "chrf": (chrf(), found, wanted),
        "bleu_lower_tokens": (bleu_of_tokens(how), *lower),
    }
    intervals: dict[str, list[float]] = {}
    for name, (metric, these, those) in told.items():
        score = metric.corpus_score(list(these), [list(those)], n_bootstrap=RESAMPLES)
        intervals[name] = [float(score._mean - score._ci), float(score._mean + score._ci)]
    return intervals


def signatures(how: Counting) -> dict[str, str]:
    """How each of `scores` is counted, as sacrebleu says it."""
    metrics = {"bleu": bleu(how), "chrf": chrf(), "bleu_lower_tokens": bleu_of_tokens(how)}
    for metric in metrics.values():
        metric.corpus_score(["a"], [["a"]])  # only then does it know the number of references
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def bleu(how: Counting) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=how.tokenize, effective_order=how.effective_order)


def chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def bleu_of_tokens(how: Counting) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", force=True, effective_order=how.effective_order)


def tokenized(text: str) -> str:
    """Lower case, words, signs and the characters of scripts without blanks apart: `A man's.` -> `a man ' s .`"""
    return " ".join(_token.findall(text.lower()))


def _corpus(metric: Any, found: Sequence[str], wanted: Sequence[str]) -> float:
    return float(metric.corpus_score(list(found), [list(wanted)]).score)
