"""explain(predictor, rows): which tokens decided an answer, by integrated gradients
(Sundararajan, Taly & Yan, 2017, https://arxiv.org/abs/1703.01365), through captum.

What is explained is the log-odds of the label that was found, z_c - log sum_{k != c} exp z_k of the logits z: the found
label against all others together; with two labels, the difference of their logits. The vectors of the tokens are led in
a straight line from a text of padding to the text itself, and a token's weight is the gradient along the way times the
way, summed over the vector: positive speaks for the answer, negative against it. The weights sum to the log-odds of the
text less those of the padding; `completeness_error` says how far the sum is off.

Special tokens ([CLS], [SEP]), positions and the mask stay as they are on the whole way, and so weigh nothing. The
hashed n-grams of a TextCNN have vectors of their own: they are led from zero at the same time, and the weight of an
n-gram is shared evenly by its tokens.

Everything is computed in fp32, one text at a time, whatever precision answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from bigmodel.errors import ConfigError, first_line
from bigmodel.evaluation.attribution import log_odds, refined
from bigmodel.evaluation.layout import heading, in_colour, printable, put, table, wide
from bigmodel.tasks.base import Answer, Row

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel.predictor import Predictor

STEPS, MAX_STEPS = 32, 1024  # points on the way: doubled until the sum is right
POINTS_AT_ONCE = 32
SHOWN_TOKENS = 10

Span = tuple[int, int]


# ---- explain


def explain(predictor: Predictor, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The answer to each row, and what decided it:

    text                 the text
    tokens               text, start, end (characters of the text) and weight of each token that was read
    log_odds             of the answer, in nats; log_odds_of_padding: the same where nothing is said
    completeness_error   distance of the weights' sum from the difference of these two

    ConfigError where the model takes no vectors in the place of its tokens, as BART and T5 do not.
    """
    questions: list[Row] = [{"text": row["text"]} for row in rows]
    answers = predictor.predict(questions)
    try:
        return [_explain(predictor, row["text"], answer) for row, answer in zip(questions, answers, strict=True)]
    except NotImplementedError as e:
        raise ConfigError(f"--explain leads the vectors of tokens into the model: {first_line(e)}") from None


def _explain(predictor: Predictor, text: str, answer: Answer) -> dict[str, Any]:
    sample = predictor.encode([{"text": text}])[0]
    batch = {
        name: tensor.to(predictor.device)
        for name, tensor in predictor.task.collate([sample], predictor.processor).items()
    }
    spans = _spans(predictor.processor, text, len(sample["input_ids"]))
    target = list(answer["scores"]).index(answer["label"])
    with _gradients():
        way = Way(predictor.model, batch, [span is not None for span in spans], predictor.processor.pad_token_id)
        weights, before, after = _integrate(way, target)
    return {
        "text": text,
        **answer,
        "tokens": [
            {"text": text[span[0] : span[1]], "start": span[0], "end": span[1], "weight": weight}
            for span, weight in zip(spans, weights, strict=True)
            if span is not None
        ],
        "log_odds": after,
        "log_odds_of_padding": before,
        "completeness_error": _error(weights, before, after),
    }


def _spans(processor: Any, text: str, num_read: int) -> list[Span | None]:
    """Where each token that is read begins and ends in the text; None for special tokens."""
    encoding = processor.backend_tokenizer.encode(text)  # cut as the task's `encode` has set it
    if not encoding.ids:
        return [(0, len(text))]  # what has no token is read as one unknown token
    assert len(encoding.ids) == num_read, "the text is encoded as it was for the model"
    return [
        None if special else span for special, span in zip(encoding.special_tokens_mask, encoding.offsets, strict=True)
    ]


@contextmanager
def _gradients() -> Iterator[None]:
    """Also through recurrent layers of a model that is not in training, for which cuDNN has none."""
    import torch

    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
        yield


def _integrate(way: Way, target: int) -> tuple[list[float], float, float]:
    """The weight of each token, and the log-odds of the target at both ends of the way."""
    import torch
    from captum.attr import IntegratedGradients

    def explained(*vectors: Tensor) -> Tensor:
        """Vectors of P points on the way -> (P,)"""
        return log_odds(way.logits(vectors), target)

    def attribute(steps: int) -> tuple[list[float], float]:
        parts = gradients.attribute(way.end, way.start, n_steps=steps, internal_batch_size=POINTS_AT_ONCE)
        weights = way.to_tokens([part.detach().sum(-1)[0] for part in parts])
        return weights, _error(weights, before, after)

    with torch.no_grad():
        before, after = explained(*way.start).item(), explained(*way.end).item()
    gradients = IntegratedGradients(explained)
    weights, _ = refined(attribute, after - before, STEPS, MAX_STEPS)
    return weights, before, after


def _error(weights: Sequence[float], before: float, after: float) -> float:
    return abs(sum(weights) - (after - before))


class Way:
    """From a text of padding to a text, in the vectors that the model looks up: those of tokens, and those of n-grams
    where it has them. `start` and `end` hold (1, T, E), (1, orders * T, D), or both.

    in_text   which of the T tokens stand in the text: the others stay
    """

    def __init__(self, model: Any, batch: Mapping[str, Tensor], in_text: Sequence[bool], pad_token_id: int) -> None:
        import torch

        config = model.config
        self.model, self.batch = model, batch
        self.num_tokens = len(in_text)
        self.is_textcnn = config.model_type == "textcnn"
        self.orders = list(config.ngram_orders) if self.is_textcnn else []
        self.reads_tokens = not self.is_textcnn or bool(config.kernel_sizes)
        start, end = [], []
        with torch.no_grad():
            if self.reads_tokens:
                words, ids = model.get_input_embeddings(), batch["input_ids"]
                moves = torch.tensor([in_text], device=ids.device)
                start.append(words(ids.masked_fill(moves, pad_token_id)))
                end.append(words(ids))
            if self.orders:
                end.append(self._ngrams())
                start.append(torch.zeros_like(end[-1]))
        self.start, self.end = tuple(start), tuple(end)

    def _ngrams(self) -> Tensor:
        """What the model looks up in its table of n-grams."""
        seen: list[Tensor] = []
        hook = self.model.ngrams.register_forward_hook(lambda layer, inputs, output: seen.append(output))
        try:
            self.model(**self.batch)
        finally:
            hook.remove()
        return seen[0]

    def logits(self, vectors: Sequence[Tensor]) -> Tensor:
        """Of P points on the way, each (P, ...): (P, K)."""
        num_points, given = len(vectors[0]), list(vectors)
        batch = {name: tensor.expand(num_points, -1) for name, tensor in self.batch.items()}
        if self.reads_tokens:
            batch["inputs_embeds"] = given.pop(0)
        if not self.is_textcnn:  # it hashes n-grams from the ids; others want one of the two
            del batch["input_ids"]
        hook = self.model.ngrams.register_forward_hook(lambda layer, inputs, output: given[0]) if given else None
        try:
            logits: Tensor = self.model(**batch).logits
            return logits.float()
        finally:
            if hook:
                hook.remove()

    def to_tokens(self, parts: Sequence[Tensor]) -> list[float]:
        """Weights of what was looked up -> one of each token. An n-gram shares its own among its tokens."""
        given = [part.tolist() for part in parts]
        weights = given.pop(0) if self.reads_tokens else [0.0] * self.num_tokens
        for number, order in enumerate(self.orders):
            for i in range(self.num_tokens - order + 1):
                for token in range(i, i + order):
                    weights[token] += given[0][number * self.num_tokens + i] / order
        return weights


# ---- show


def show(explanations: Sequence[Mapping[str, Any]]) -> None:
    """Print them: the text with what decided marked on a terminal, a table of the heaviest tokens elsewhere."""
    marked = in_colour()
    for explanation in explanations:
        put(render(explanation, marked))


def render(explanation: Mapping[str, Any], marked: bool) -> Group:
    parts: list[RenderableType] = [heading(f"{wide(explanation['label'], 60)} ({explanation['score']:.4f})")]
    parts += [_marked(explanation)] if marked else [Text(printable(explanation["text"])), _heaviest(explanation)]
    if explanation.get("truncated"):
        parts.append(Text(f"read: the first {explanation['tokens_read']} of {explanation['tokens']} tokens"))
    parts.append(Text(_sum(explanation), style="dim"))
    return Group(*parts)


def _marked(explanation: Mapping[str, Any]) -> Text:
    """Green speaks for the answer, red and underlined against it; the fuller the colour, the more."""
    text = Text(printable(explanation["text"]))
    most = max((abs(token["weight"]) for token in explanation["tokens"]), default=0.0) or 1.0
    for token in explanation["tokens"]:
        text.stylize(_style(token["weight"] / most), token["start"], token["end"])
    legend = Text.assemble("\n", ("speaks for it", _style(0.6)), "  ", ("against it", _style(-0.6)))
    return text + legend


def _style(strength: float) -> Style:
    if abs(strength) < 0.1:
        return Style()
    faded = round(225 * (1 - abs(strength)))
    red, green = (faded, 225) if strength > 0 else (225, faded)
    return Style(color="black", bgcolor=f"rgb({red},{green},{faded})", underline=strength < 0)


def _heaviest(explanation: Mapping[str, Any]) -> RenderableType:
    tokens = sorted(explanation["tokens"], key=lambda token: -abs(token["weight"]))[:SHOWN_TOKENS]
    lines = [
        [f"{token['weight']:+.3f}", wide(token["text"], 40), f"{token['start']}-{token['end']}"] for token in tokens
    ]
    return table(["weight", "token", "characters"], lines, left={1})


def _sum(explanation: Mapping[str, Any]) -> str:
    total = sum(token["weight"] for token in explanation["tokens"])
    return (
        f"The weights sum to {total:.3f}: the log-odds of the answer, {explanation['log_odds']:.3f}, less those of "
        f"padding, {explanation['log_odds_of_padding']:.3f} (off by {explanation['completeness_error']:.4f})."
    )
