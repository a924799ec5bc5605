"""How near translations come to those of people: BLEU and chrF by sacrebleu, which says how it counted.

Papineni et al., 2002, doi:10.3115/1073083.1073135; Popović, 2015, doi:10.18653/v1/W15-3049; Post, 2018,
https://arxiv.org/abs/1804.08771. Older papers count BLEU over the lower-cased tokens of a tokenizer of their own: such
a figure stands beside, for comparison with theirs alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

RESAMPLES = 1000
_token = re.compile(r"\w+|[^\w\s]")


def scores(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """BLEU of the texts as they are, chrF, and BLEU of their lower-cased tokens, all from 0 to 100."""
    lower = [[tokenized(text) for text in texts] for texts in (found, wanted)]
    return {
        "bleu": _corpus(bleu(), found, wanted),
        "chrf": _corpus(chrf(), found, wanted),
        "bleu_lower_tokens": _corpus(bleu_of_tokens(), *lower),
    }


def intervals(found: Sequence[str], wanted: Sequence[str]) -> dict[str, list[float]]:
    """Of each of `scores`, its 95 % interval: sacrebleu's bootstrap over rows, of 1,000 resamples."""
    lower = [[tokenized(text) for text in texts] for texts in (found, wanted)]
    told = {
        "bleu": (bleu(), found, wanted),
        "chrf": (chrf(), found, wanted),
        "bleu_lower_tokens": (bleu_of_tokens(), *lower),
    }
    intervals: dict[str, list[float]] = {}
    for name, (metric, these, those) in told.items():
        score = metric.corpus_score(list(these), [list(those)], n_bootstrap=RESAMPLES)
        intervals[name] = [float(score._mean - score._ci), float(score._mean + score._ci)]
    return intervals


def signatures() -> dict[str, str]:
    """How each of `scores` is counted, as sacrebleu says it."""
    metrics = {"bleu": bleu(), "chrf": chrf(), "bleu_lower_tokens": bleu_of_tokens()}
    for metric in metrics.values():
        metric.corpus_score(["a"], [["a"]])  # only then does it know the number of references
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()


def chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def bleu_of_tokens() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", force=True)


def tokenized(text: str) -> str:
    """Lower case, words and signs apart: `A man's hat.` -> `a man ' s hat .`"""
    return " ".join(_token.findall(text.lower()))


def _corpus(metric: Any, found: Sequence[str], wanted: Sequence[str]) -> float:
    return float(metric.corpus_score(list(found), [list(wanted)]).score)
