"""The report of a search as one HTML file: words, a table, pictures. No script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from bigmodel.evaluation.layout import printable
from bigmodel.tasks.base import Goal
from tune_jobs.pictures import Picture, pictures
from tune_jobs.report import cells, columns, commands, statements, trials_of

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 60em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em }
h2 { font-size: 1.15em; margin: 2em 0 .4em }
.verdict { font-size: 1.25em; border-left: .25em solid #e08214; padding-left: .7em }
.note { color: #555 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .87em; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .2em .8em .2em 0; border-bottom: 1px solid #e8e8e8; white-space: nowrap }
th.words, td.words { text-align: left }
figure { margin: 0 }
svg { width: 100%; height: auto }
pre { background: #f5f5f5; padding: .7em 1em; overflow-x: auto }
"""


def page(report: Mapping[str, Any]) -> str:
    """From what `report` gives, or tune_report.json holds."""
    goal = Goal(report["goal"]["metric"], report["goal"]["mode"])
    verdict, *others = statements(report)
    title = _text(f"Search: {report['name']}")
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
        f'<p class="verdict">{_text(verdict)}</p>',
        *(f"<p>{_text(words)}</p>" for words in others),
        *_going_on(report),
        *_repeated(report),
        *(_figure(picture) for picture in pictures(trials_of(report), goal, report["scales"])),
        *_trials(report),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _going_on(report: Mapping[str, Any]) -> Iterator[str]:
    if lines := commands(report):
        yield "<h2>To go on</h2>\n<pre>" + "\n".join(map(_text, lines)) + "</pre>"


def _repeated(report: Mapping[str, Any]) -> Iterator[str]:
    """Candidates and default, each with its value by seed."""
    if not report["verdict"]:
        return
    means, values = report["verdict"]["means"], report["verdict"]["values"]
    seeds = sorted({int(seed) for own in values.values() for seed in own})
    own = {name: {int(seed): value for seed, value in by_seed.items()} for name, by_seed in values.items()}
    lines = [[name, _number(mean), *(_number(own[name].get(seed)) for seed in seeds)] for name, mean in means.items()]
    yield "<h2>Repeated with the same seeds</h2>"
    yield _table(["", "mean", *(f"seed {seed}" for seed in seeds)], lines, words={0})
    yield f'<p class="note">{_text(report["goal"]["metric"])} on the validation rows.</p>'


def _trials(report: Mapping[str, Any]) -> Iterator[str]:
    header = [*columns(report), "reason"]
    yield "<h2>All trials, best first</h2>"
    yield _table(header, [[*cells(one, report), one["reason"]] for one in report["trials"]], words={len(header) - 1})


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], words: Collection[int]) -> str:
    """Columns whose number is in `words` begin at the left, the others end at the right."""
    head = _row("th", header, words)
    body = "\n".join(_row("td", line, words) for line in lines)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _row(tag: str, line: Sequence[str], words: Collection[int]) -> str:
    kind = [' class="words"' if i in words else "" for i in range(len(line))]
    return f"<tr>{''.join(f'<{tag}{k}>{_text(cell)}</{tag}>' for k, cell in zip(kind, line, strict=True))}</tr>"


def _text(words: str) -> str:
    return escape(printable(words))


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4f}"


def _figure(picture: Picture) -> str:
    title, caption = _text(picture.title), _text(picture.caption)
    drawn = picture.svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return f'<h2>{title}</h2>\n<figure>\n{drawn}\n<figcaption class="note">{caption}</figcaption>\n</figure>'
