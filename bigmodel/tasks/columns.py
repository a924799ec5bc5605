"""What the training rows teach of a table's columns: kinds, missing values, categories, how numbers are spread."""

from __future__ import annotations

import datetime
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel.errors import ConfigError, DataError, did_you_mean
from bigmodel.experiment import TableConfig
from bigmodel.models import table_processor as cells
from bigmodel.models.table_processor import TableProcessor
from bigmodel.tasks.base import Alike
from bigmodel.tasks.records import AT_ONCE

CELLS = 1_000_000  # of the rows that are held as Python has them
POINTS = 256  # at most, of the map from a number to its quantile
MOSTLY = 0.9  # a column of so many numbers is meant to hold numbers
FEW = 20  # different values of a column whose numbers may be names, such as "36 months"
SAME = "is the same in all training rows"
LONG = 60  # characters on average: no name of a category
WORDS = {"true", "false", "yes", "no", "t", "f", "y", "n"}  # of booleans; 0 and 1 are numbers


DATED = re.compile(r"(\d{1,4})([/.-])(\d{1,2})\2(\d{1,4})(?:([ T])\d{1,2}:\d{2}(:\d{2})?)?$")
MARKED = re.compile(r"(?!\d+(\.\d+){2,}$)[$€£¥]? ?-?\d[\d.,' ]*(%|[^\W\d_]{0,6})$")


class NotLearnt(Exception):
    """Why a column says nothing that a model could use."""


def learn(
    records: Sequence[Mapping[str, Any]], table: TableConfig, beside: Mapping[str, list[Any]] | None = None
) -> TableProcessor:
    """The processor of a table with these training rows, gone through several times, and more values of its columns
    `beside` them. ConfigError, DataError."""
    beside = beside or {}
    names = list(dict.fromkeys([*beside, *(name for record in records for name in record)]))
    for name in sorted((table.types.keys() | table.dates.keys()) - set(names)):
        if table.types.get(name) != "ignore":
            field = "types" if name in table.types else "dates"
            raise ConfigError(
                f"data.table.{field} names '{name}', but there is no such column.{did_you_mean(name, names)} "
                f"Columns: {', '.join(names)}"
            )
    columns, ignored = [], {}
    for name, values in values_of(names, records, table.missing):
        try:
            columns.append(column(name, values + beside.get(name, []), table))
        except NotLearnt as why:
            ignored[name] = str(why)
    if not columns:
        reasons = ", ".join(f"{name} {reason}" for name, reason in ignored.items())
        kind = Alike if SAME in ignored.values() else DataError
        raise kind(f"no column is left to learn from{': ' if reasons else ''}{reasons}")
    return TableProcessor(columns, ignored, table.missing)


def values_of(
    names: Sequence[str], records: Sequence[Mapping[str, Any]], missing: Sequence[str]
) -> Iterator[tuple[str, list[Any]]]:
    """Each column's values, None where missing: some columns in one pass over the rows, as many as are not too much."""
    at_once, absent = max(1, CELLS // max(1, len(records))), frozenset(missing)
    for start in range(0, len(names), at_once):
        some: dict[str, list[Any]] = {name: [] for name in names[start : start + at_once]}
        for begin in range(0, len(records), AT_ONCE):
            held = records[begin : begin + AT_ONCE]
            for name, values in some.items():
                values += [cells.nothing(record.get(name), absent) for record in held]
        yield from some.items()


def column(name: str, values: Sequence[Any], table: TableConfig) -> dict[str, Any]:
    """What is learnt of one column: see TableProcessor."""
    known = [value for value in values if value is not None]
    if not known:
        raise NotLearnt("is empty")
    if len(known) == len(values) and all(str(value) == str(known[0]) for value in known):
        # nobody need say how it is written
        raise NotLearnt(SAME)
    asked = "date" if name in table.dates else table.types.get(name)
    if asked is None and cells.numbers(known) is not None:
        asked = "number"
    form = table.dates.get(name) or (written(name, known) if asked in (None, "date") else None)
    kind = asked or infer(name, known, table, form)
    learnt = {"name": name, "kind": kind, "missing": len(known) < len(values)}
    if kind == "date" and form:
        learnt["format"] = form
    try:
        if kind == "number":
            learnt |= {"parts": [part(cells.floats(known, name))]}
        elif kind == "date":
            learnt |= {"parts": [part(of) for of in cells.dates(known, learnt)]}
        else:
            learnt |= {"categories": categories(name, known, kind, table.max_categories)}
    except ValueError as why:
        field = "dates" if name in table.dates else "types"
        raise DataError(f"{why}. data.table.{field} says that it is a {kind}") from None
    if not learnt["missing"] and constant(learnt):
        raise NotLearnt(SAME)
    return learnt | {"example": example(learnt, known)}


def infer(name: str, known: Sequence[Any], table: TableConfig, form: str | None) -> str:
    """The kind of a column with these values, dates written in this form; NotLearnt of free text."""
    counts = Counter(zip(map(type, known), known, strict=True))  # 1, 1.0 and true are equal
    words = {cells.category(value).lower() for _, value in counts}
    if words <= cells.BOOLEANS.keys() and words & WORDS:
        return "boolean"
    different = len(words)
    is_written = partial(cells.date, form=form) if form else is_date
    for kind, is_one in (("number", cells.is_number), ("date", is_written)):
        wrong = [key for key in counts if not is_one(key[1])]
        if not wrong:
            return kind
        num_wrong = sum(counts[key] for key in wrong)
        if different > FEW and num_wrong <= (1 - MOSTLY) * len(known):
            raise DataError(
                f"column '{name}' holds {kind}s but for {num_wrong:,} of {len(known):,} values, such as "
                f"{wrong[0][1]!r:.60}. Name what stands for nothing in data.table.missing, or {say(name)}"
            )
    if different > FEW and are_marked(known):
        raise DataError(
            f"column '{name}' holds numbers with a sign or unit, such as {known[0]!r:.60}. Write them plainly, such as "
            f"1234.5, or {say(name)}"
        )
    if different <= table.max_categories:
        return "category"
    if different > len(known) / 2 or statistics.fmean(len(str(value)) for value in known) > LONG:
        raise NotLearnt(f"looks like free text: {different:,} different values in {len(known):,} rows")
    return "category"


def say(name: str) -> str:
    return f"say what the column is: data.table.types={{{name}: category}}"


def written(name: str, known: Sequence[Any]) -> str | None:
    """How nearly all of these dates are written, where that is not ISO; None of what holds none. DataError where day
    and month cannot be told apart."""
    matches = (DATED.match(value) for value in known if isinstance(value, str))
    shapes = Counter((len(found[1]) > 2, found[2], found[5] or "", bool(found[6])) for found in matches if found)
    if max(shapes.values(), default=0) < MOSTLY * len(known):
        return None
    (year_first, mark, blank, seconds), _ = shapes.most_common(1)[0]
    ends = (f"{blank}%H:%M" if blank else "") + (":%S" if seconds else "")
    orders = ["%Y %m %d"] if year_first else ["%d %m %Y", "%m %d %Y"]
    forms = [order.replace(" ", mark) + ends for order in orders]
    different = set(map(str, known))
    read = {form: sum(cells.date(value, form) is not None for value in different) for form in forms}
    best = max(forms, key=read.__getitem__)
    if read[best] < MOSTLY * len(different) or sum(map(is_date, different)) >= read[best]:
        return None
    if len(set(read.values())) < len(forms):
        raise DataError(
            f"column '{name}' holds dates such as {known[0]!r:.60}, and no row tells day from month. Say how they are "
            f"written: data.table.dates={{{name}: '{forms[0]}'}} or '{forms[1]}'; or {say(name)}"
        )
    return best


def is_date(value: Any) -> bool:
    return isinstance(value, str) and "-" in value and cells.date(value) is not None


def are_marked(known: Sequence[Any]) -> bool:
    """Whether nearly all are numbers with the same sign, unit or separators: 12 %, 70 kg, $5, 1,234.5."""
    marks = Counter(re.sub(r"[\d.,' ]", "", value) for value in known if isinstance(value, str) and MARKED.match(value))
    return bool(marks) and max(marks.values()) >= MOSTLY * len(known)


def categories(name: str, known: Sequence[Any], kind: str, most: int) -> list[str]:
    """The most frequent ones, the more frequent first."""
    if kind == "boolean":
        cells.category_codes(known, {"name": name, "kind": kind, "categories": [], "missing": False})
        known = [cells.BOOLEANS[cells.category(value).lower()] for value in known]
    counts = Counter(map(cells.category, known))
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


def part(values: NDArray[np.float64]) -> dict[str, Any]:
    """The median, and points of the map that makes these numbers standard normal: each value goes to the normal
    quantile of its mean rank, so ties stay together, and the rest lies on lines between them."""
    x, counts = np.unique(values, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(values)
    if len(x) > POINTS:
        at = np.searchsorted(ranks, np.linspace(ranks[0], ranks[-1], POINTS)).clip(0, len(x) - 1)
        at = np.unique([0, *at, len(x) - 1])
    else:
        at = np.arange(len(x))
    normal = statistics.NormalDist()
    z = np.array([normal.inv_cdf(rank) for rank in ranks[at]])
    spread = np.interp(x, x[at], z)
    mean = np.average(spread, weights=counts)
    deviation = np.sqrt(np.average((spread - mean) ** 2, weights=counts)) or 1.0
    return {"median": float(np.median(values)), "x": x[at].tolist(), "z": ((z - mean) / deviation).tolist()}


def constant(learnt: Mapping[str, Any]) -> bool:
    if "parts" in learnt:
        return all(len(part["x"]) == 1 for part in learnt["parts"])
    return len(learnt["categories"]) == 1


def example(learnt: Mapping[str, Any], known: Sequence[Any]) -> Any:
    """A typical value as a request would have it: the median, the most frequent category, the earliest date."""
    if learnt["kind"] == "number":
        median = learnt["parts"][0]["median"]
        return int(median) if median.is_integer() else median
    if learnt["kind"] == "boolean":
        return bool(learnt["categories"][0] == "true")
    if learnt["kind"] == "date":
        return min(known, key=lambda value: cells.date(value, learnt.get("format")) or datetime.datetime.max)
    return learnt["categories"][0]


def edges(z: NDArray[Any], targets: Sequence[Any], table: TableConfig, regression: bool) -> list[list[float]]:
    """Where the pieces of each number begin and end: numbers (rows, N), NaN where missing -> N lists, ascending."""
    wanted = np.asarray(targets)
    if regression:  # a tree's sums of squares would lose what tells large targets apart
        wanted = (wanted - wanted.mean()) / wanted.std()
    return [_edges(of[~np.isnan(of)], wanted[~np.isnan(of)], table, regression) for of in z.T]


def _edges(z: NDArray[Any], targets: NDArray[Any], table: TableConfig, regression: bool) -> list[float]:
    if not len(z):  # known of rows alone that were not drawn
        return [-0.5, 0.5]
    z = z.astype(np.float64)
    if table.binning == "quantile":
        inner = np.quantile(z, np.linspace(0, 1, table.bins + 1)[1:-1])
    else:
        inner = splits(z, targets, table.bins, regression)
    found = [float(z.min())]
    for edge in [*sorted(inner.tolist()), float(z.max())]:
        if edge - found[-1] > 1e-5:
            found.append(edge)
    return found if len(found) > 1 else [found[0] - 0.5, found[0] + 0.5]


def splits(z: NDArray[Any], targets: NDArray[Any], most: int, regression: bool) -> NDArray[Any]:
    """Thresholds of a decision tree with this one input (Gorishniy et al., 2022, section 3.2.2)."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if most < 2:
        return np.empty(0)
    make: Any = DecisionTreeRegressor if regression else DecisionTreeClassifier
    tree = make(max_leaf_nodes=most, min_samples_leaf=max(1, min(64, len(z) // 100)), random_state=0)
    structure = tree.fit(z[:, None], targets).tree_
    return np.asarray(structure.threshold[structure.feature >= 0])
