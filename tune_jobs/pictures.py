"""Pictures of a search, each one function from the trials to an SVG: the same trials give the same text."""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bigmodel.tasks.base import Goal
from tune_jobs.journal import State, Trial
from tune_jobs.report import Scale

Scales = Mapping[str, Scale]
"""Of each searched parameter: how its values were drawn."""
Valued = list[tuple[Trial, float]]

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "bigmodel",
    "svg.fonttype": "none",  # text stays text, and is shown in the reader's fonts, whatever its script
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
}
STATES: dict[State, str] = {"finished": "#2166ac", "stopped": "#92b7d7", "running": "#999999", "failed": "#c0392b"}
BEST = "#e08214"
COLOURS = "viridis"
SHOWN = 18  # letters of a value
FEW = 10  # trials below which an importance is a hint at most


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    """What is to be seen; or, without `svg`, why there is nothing."""
    svg: str = ""


def pictures(trials: Sequence[Trial], goal: Goal, scales: Scales) -> list[Picture]:
    """All there are."""
    return [
        history(trials, goal),
        curves(trials, goal),
        parallel(trials, goal, scales),
        importance(trials, goal, scales),
        rate_and_beta(trials, goal, scales),
    ]


# ---- one function a picture


def history(trials: Sequence[Trial], goal: Goal) -> Picture:
    title, valued = "What each trial reached", _valued(trials, goal)
    if not valued:
        return Picture(title, "No trial has a value.")
    low, high = _window(valued, goal)
    with _drawing() as (figure, svg):
        axes = figure.subplots()
        for state, colour in STATES.items():
            own = [(trial.number, min(max(value, low), high)) for trial, value in valued if trial.state == state]
            if own and state != "failed":
                axes.scatter(*zip(*own, strict=True), s=28, c=colour, label=state, zorder=3)
        if failed := [trial.number for trial in trials if trial.state == "failed"]:
            worst = low if goal.mode == "max" else high
            axes.scatter(failed, [worst] * len(failed), s=34, c=STATES["failed"], marker="x", label="failed", zorder=3)
        numbers, best = _running_best(trials, valued, goal)
        axes.step(numbers, best, where="post", color=BEST, linewidth=1.6, label="best so far")
        axes.set(xlabel="trial", ylabel=goal.metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _limit(axes, low, high)
        _legend(axes)
        words = f"The best {goal.metric} of each trial on the validation rows.{_edge(valued, low, high)}"
        return Picture(title, words, svg())


def curves(trials: Sequence[Trial], goal: Goal) -> Picture:
    title, valued = "Learning curves", _valued(trials, goal)
    if not valued:
        return Picture(title, "No trial has a value.")
    best = _best(valued, goal)
    points = {trial.number: _finite(trial) for trial, _ in valued}
    low, high = _window([(trial, value) for trial, _ in valued for _, value in points[trial.number]], goal, times=5)
    faint = 0.85 if len(valued) <= 20 else 0.5
    with _drawing() as (figure, svg):
        axes = figure.subplots()
        for trial, _ in sorted(valued, key=lambda pair: pair[0].number == best):
            steps, values = zip(*points[trial.number], strict=True)
            look = {"color": STATES[trial.state], "label": trial.state, "linewidth": 1.0, "alpha": faint}
            if trial.number == best:
                look = {"color": BEST, "label": f"trial {best}, the best", "linewidth": 2.4}
            axes.plot(steps, values, marker=".", markersize=4, **look)
            if trial.state == "failed":
                axes.plot(steps[-1], values[-1], color=STATES["failed"], marker="x")
        axes.set(xlabel="optimiser step", ylabel=goal.metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _limit(axes, low, high)
        _legend(axes)
        cut = sum(any(not low <= value <= high for _, value in own) for own in points.values())
        words = f"{_capital(goal.metric)} on the validation rows while the trials were trained."
        return Picture(title, words + (f" Much worse at times, and cut at the edge: {cut}." if cut else ""), svg())


def parallel(trials: Sequence[Trial], goal: Goal, scales: Scales) -> Picture:
    title, valued = "Parameters side by side", _valued(trials, goal)
    if len(valued) < 2 or not scales:
        return Picture(title, "This takes two trials with a value, and a parameter that was searched.")
    best = _best(valued, goal)
    low, high = _window(valued, goal)
    columns = [_column(name, [trial for trial, _ in valued], scales) for name in scales]
    columns.append(_value_column(valued, low, high))
    with _drawing() as (figure, svg):
        axes = figure.subplots()
        colours = _colours(valued, low, high, goal)
        for trial, _ in sorted(valued, key=lambda pair: (pair[0].number == best, pair[1] * _sign(goal))):
            line = [column.places.get(trial.number, math.nan) for column in columns]
            look = {"color": BEST, "linewidth": 2.6} if trial.number == best else {"color": colours[trial.number]}
            axes.plot(range(len(columns)), line, **{"linewidth": 1.2, "alpha": 0.9, **look})
        for i, column in enumerate(columns):
            axes.axvline(i, color="#888888", linewidth=0.8)
            at, side = ((-4, 0), "right") if column is not columns[-1] else ((4, 0), "left")
            for place, label in column.ticks:
                axes.annotate(
                    label, (i, place), at, textcoords="offset points", ha=side, va="center", fontsize=8, zorder=4,
                    bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
                )  # fmt: skip
        axes.set_xticks(range(len(columns)), [*_short(list(scales)), goal.metric])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set(xlim=(-0.4, len(columns) - 0.65), ylim=(-0.05, 1.05), yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        words = f"A line a trial, from dark (worse) to yellow (better); orange is trial {best}, the best."
        return Picture(title, words + _edge(valued, low, high), svg())


def importance(trials: Sequence[Trial], goal: Goal, scales: Scales) -> Picture:
    title, valued = "What mattered", _valued(trials, goal)
    shares, reason = _importances(valued, scales)
    if reason:
        return Picture(title, reason)
    with _drawing(height=0.9 + 0.32 * len(shares)) as (figure, svg):
        axes = figure.subplots()
        names = list(shares)[::-1]
        bars = axes.barh(_short(names), [shares[name] for name in names], color=STATES["finished"], height=0.62)
        axes.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=4)
        axes.set(xlim=(0, 1), xticks=[], xlabel="share of the variance that it explains alone")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(left=False)
        axes.grid(False)
        few = " So few trials give a hint at most." if len(valued) < FEW else ""
        words = (
            f"A forest of trees predicts {goal.metric} from {len(valued)} trials, a stopped one with the best it had "
            "reached. Of the variance of its predictions over all values tried, a bar is the share that a parameter "
            "explains alone; what is left of 100 % they explain together, in pairs or more: functional ANOVA (Hutter "
            f"et al., 2014).{few}"
        )
        return Picture(title, words, svg())


def rate_and_beta(trials: Sequence[Trial], goal: Goal, scales: Scales) -> Picture:
    title, rate = "Learning rate and betas", "optim.lr"
    betas = [name for name in ("optim.beta1", "optim.beta2") if name in scales]
    if rate not in scales or not betas:
        return Picture(title, "The learning rate and a beta were not both searched.")
    where = [trial for trial in trials if all(_is_number(trial.params.get(name)) for name in (rate, *betas))]
    where = [t for t in where if t.params[rate] > 0 and all(t.params[name] < 1 for name in betas)]
    valued = _valued(where, goal)
    if not valued:
        return Picture(title, "No trial has a value.")
    best = _best(valued, goal)
    low, high = _window(valued, goal)
    with _drawing(height=3.6) as (figure, svg):
        panels = figure.subplots(1, len(betas), squeeze=False)[0]
        for axes, name in zip(panels, betas, strict=True):
            places = {trial.number: (trial.params[rate], 1 - trial.params[name]) for trial in where}
            _log_axis(axes, "x", [x for x, _ in places.values()], _shown)
            _log_axis(axes, "y", [y for _, y in places.values()], lambda y: f"{1 - y:.6g}")
            axes.invert_yaxis()
            axes.set(xlabel="learning rate", ylabel=name.rpartition(".")[2])
            if failed := [places[trial.number] for trial in where if trial.state == "failed"]:
                axes.scatter(*zip(*failed, strict=True), c=STATES["failed"], marker="x", s=34, label="failed")
            if whole := [(*places[trial.number], value) for trial, value in valued if trial.state != "failed"]:
                x, y, value = zip(*whole, strict=True)
                colours = {"c": value, "cmap": _colour_map(goal), "vmin": low, "vmax": high}
                dots = axes.scatter(x, y, s=46, edgecolors="#555555", linewidths=0.4, **colours)
            ring = {"s": 150, "facecolors": "none", "edgecolors": BEST, "linewidths": 2.2}
            axes.scatter(*places[best], label=f"trial {best}, the best", **ring)
        _legend(panels[0])
        if whole and low < high:
            figure.colorbar(dots, ax=list(panels), label=goal.metric, extend=_extend(valued, low, high))
        return Picture(title, f"A dot a trial, coloured by its best {goal.metric}.{_edge(valued, low, high)}", svg())


# ---- values


def _valued(trials: Sequence[Trial], goal: Goal) -> Valued:
    """The trials that reached something, with the best they reached."""
    return [(trial, value) for trial in trials if (value := trial.best(goal.mode)) is not None]


def _finite(trial: Trial) -> list[tuple[int, float]]:
    return [(step, value) for step, value in trial.curve if math.isfinite(value)]


def _sign(goal: Goal) -> int:
    return 1 if goal.mode == "max" else -1


def _best(valued: Valued, goal: Goal) -> int:
    """Number of the best trial, a failed one only where there is no other."""
    return max(valued, key=lambda pair: (pair[0].state != "failed", pair[1] * _sign(goal), -pair[0].number))[0].number


def _running_best(trials: Sequence[Trial], valued: Valued, goal: Goal) -> tuple[list[int], list[float]]:
    """(numbers, best value up to each), to the last trial; failed trials count only where there is no other."""
    whole = [(trial, value) for trial, value in valued if trial.state != "failed"] or valued
    numbers: list[int] = []
    best: list[float] = []
    for trial, value in sorted(whole, key=lambda pair: pair[0].number):
        numbers.append(trial.number)
        best.append(value if not best or goal.better(value, best[-1]) else best[-1])
    return [*numbers, max(trial.number for trial in trials)], [*best, best[-1]]


def _window(valued: Valued, goal: Goal, times: float = 4) -> tuple[float, float]:
    """Lowest and highest value to show, at most so many times as far from the best as the median is: a few very bad
    ones must not flatten all others."""
    values = sorted((value * _sign(goal) for _, value in valued), reverse=True)
    best, median, worst = values[0], values[len(values) // 2], values[-1]
    if best > median:
        worst = max(worst, best - times * (best - median))
    ends = sorted((best * _sign(goal), worst * _sign(goal)))
    return ends[0], ends[1]


def _edge(valued: Valued, low: float, high: float) -> str:
    beyond = sum(not low <= value <= high for _, value in valued)
    return f" Much worse than the others, and put at the edge: {beyond}." if beyond else ""


def _extend(valued: Valued, low: float, high: float) -> str:
    return "min" if any(v < low for _, v in valued) else "max" if any(v > high for _, v in valued) else "neither"


def _importances(valued: Valued, scales: Scales) -> tuple[dict[str, float], str]:
    """(share of each parameter, largest first; or why there are none).

    Main effects, as Optuna's evaluator has them: of the variance of a random forest. Its `get_param_importances` would
    stretch them to a sum of 1, which hides what parameters do together.
    """
    import optuna

    valued = [pair for pair in valued if all(_has(pair[0], name, scales) for name in scales)]
    if len(valued) < 2:
        return {}, "This takes two trials with a value."
    if len({value for _, value in valued}) < 2:
        return {}, "All trials reached the same value: nothing mattered, or nothing can be told."
    columns = {name: _distribution(name, [trial for trial, _ in valued], scales) for name in scales}
    varied = {name: column for name, column in columns.items() if column is not None}
    if not varied:
        return {}, "No parameter was varied."

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        for i, (_, value) in enumerate(valued):
            params = {name: values[i] for name, (values, _) in varied.items()}
            ranges = {name: distribution for name, (_, distribution) in varied.items()}
            study.add_trial(optuna.create_trial(params=params, distributions=ranges, value=value))
        fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return {name: float(share) for name, share in fanova.evaluate(study).items()}, ""
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(name: str, trials: Sequence[Trial], scales: Scales) -> tuple[list[Any], Any] | None:
    """(values as Optuna sees them, their distribution); None for a parameter that did not vary."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    scale, values = _scale(name, trials, scales), [trial.params[name] for trial in trials]
    if scale == "choice":
        words = [json.dumps(value, default=str) for value in values]
        return (words, CategoricalDistribution(sorted(set(words)))) if len(set(words)) > 1 else None
    places = [_position(scale, value) for value in values]
    low, high = min(places), max(places)
    return (places, FloatDistribution(low, high)) if low < high else None


# ---- scales


@dataclass(frozen=True)
class _Column:
    """An axis of the parallel coordinates: heights from 0 to 1."""

    places: dict[int, float]
    ticks: list[tuple[float, str]]


def _column(name: str, trials: Sequence[Trial], scales: Scales) -> _Column:
    having = {trial.number: trial.params[name] for trial in trials if _has(trial, name, scales)}
    scale = _scale(name, trials, scales)
    if scale == "choice":
        words = {number: _word(value) for number, value in having.items()}
        order = sorted(set(words.values()), key=_number_first)
        heights = {word: (i / (len(order) - 1) if len(order) > 1 else 0.5) for i, word in enumerate(order)}
        ticks = list(zip(heights.values(), _told_apart(order), strict=True))
        return _Column({number: heights[word] for number, word in words.items()}, ticks)
    low, high = min(having.values()), max(having.values())
    start, end = _position(scale, low), _position(scale, high)

    def height(value: float) -> float:
        return (_position(scale, value) - start) / (end - start) if end > start else 0.5

    return _Column(
        {number: height(value) for number, value in having.items()},
        [(height(value), _shown(value)) for value in _ticks(scale, low, high)],
    )


def _value_column(valued: Valued, low: float, high: float) -> _Column:
    def height(value: float) -> float:
        return min(max((value - low) / (high - low), 0), 1) if high > low else 0.5

    ticks = [(height(value), _shown(value)) for value in _ticks("linear", low, high)]
    return _Column({trial.number: height(value) for trial, value in valued}, ticks)


def _has(trial: Trial, name: str, scales: Scales) -> bool:
    """A null is a value where it was one of the choices."""
    return trial.params.get(name) is not None or name in trial.params and scales[name] == "choice"


def _scale(name: str, trials: Sequence[Trial], scales: Scales) -> Scale:
    """As it was searched, where the values allow it."""
    values = [trial.params[name] for trial in trials if trial.params.get(name) is not None]
    scale = scales[name]
    if not values or not all(map(_is_number, values)):
        return "choice"
    if (scale == "log" and min(values) <= 0) or (scale == "log of 1 - x" and max(values) >= 1):
        return "linear"
    return scale


def _position(scale: Scale, value: float) -> float:
    if scale == "log":
        return math.log10(value)
    return -math.log10(1 - value) if scale == "log of 1 - x" else float(value)


def _ticks(scale: Scale, low: float, high: float) -> list[float]:
    """Some round values between two."""
    if not low < high:
        return [low]
    if scale == "log of 1 - x":
        return [1 - rest for rest in _ticks("log", 1 - high, 1 - low)]
    if scale == "linear":
        round_ones = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
        return [float(value) for value in round_ones if low <= value <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        candidates = [digit * 10.0**k for k in decades for digit in digits]
        found = [value for value in candidates if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 6)]
    return [low, high]


def _log_axis(axes: Any, which: str, values: Sequence[float], shown: Callable[[float], str]) -> None:
    low, high = min(values), max(values)
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    margin = (high / low) ** 0.08 if high > low else 2.0
    getattr(axes, f"set_{which}lim")(low / margin, high * margin)
    axis.set_major_locator(FixedLocator(_ticks("log", low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# ---- words and colours


def _shown(value: Any) -> str:
    """A value in few letters."""
    text = _word(f"{value:.4g}" if isinstance(value, float) else value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _word(value: Any) -> str:
    """A value without what an SVG cannot hold, such as control characters."""
    text = "null" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def _told_apart(words: Sequence[str]) -> list[str]:
    """In few letters, the last ones where the first ones are the same."""
    first = [_shown(word) for word in words]
    return [
        short if first.count(short) == 1 else "…" + word[1 - SHOWN :] for word, short in zip(words, first, strict=True)
    ]


def _number_first(word: str) -> tuple[float, str]:
    try:
        return float(word), word
    except ValueError:
        return math.inf, word


def _short(names: Sequence[str]) -> list[str]:
    """Last parts of the names, where these differ."""
    last = [name.rpartition(".")[2] for name in names]
    return [_shown(part if last.count(part) == 1 else name) for name, part in zip(names, last, strict=True)]


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


def _colour_map(goal: Goal) -> str:
    return COLOURS if goal.mode == "max" else f"{COLOURS}_r"


def _colours(valued: Valued, low: float, high: float, goal: Goal) -> dict[int, Any]:
    scale = matplotlib.colormaps[_colour_map(goal)]
    span = high - low
    return {trial.number: scale(min(max((value - low) / span, 0), 1) if span else 1.0) for trial, value in valued}


def _limit(axes: Any, low: float, high: float) -> None:
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    axes.set_ylim(low - margin, high + margin)


def _legend(axes: Any) -> None:
    """Each word once, in a line above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2}
    axes.legend(once.values(), once.keys(), ncols=len(once), **place)


@contextmanager
def _drawing(height: float = 3.2) -> Iterator[tuple[Any, Callable[[], str]]]:
    """(figure, what gives its SVG), in our style whatever this machine's is."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has another
        figure = Figure(figsize=(8.6, height), layout="constrained")
        yield figure, lambda: _svg(figure)


def _svg(figure: Any) -> str:
    """Only the element, without the names that nothing refers to: several stand in one page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"#([A-Za-z][\w.-]*)", text))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
