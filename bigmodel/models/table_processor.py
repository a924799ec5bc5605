"""TableProcessor: a table's rows as people write them -> the numbers and codes that the networks of tabular.py read.

It opens without bigmodel, by AutoFeatureExtractor.from_pretrained(path, trust_remote_code=True), and is a file of JSON.
"""

import datetime
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.feature_extraction_utils import FeatureExtractionMixin

UNSEEN, MISSING, FIRST = 0, 1, 2  # codes of categories; those that training knew begin at FIRST
BOOLEANS = {"true": "true", "yes": "true", "t": "true", "y": "true", "1": "true",
            "false": "false", "no": "false", "f": "false", "n": "false", "0": "false"}  # fmt: skip
DATE_PARTS = ("day", "day of the year", "day of the week")
Record = Mapping[str, Any]


class TableProcessor(FeatureExtractionMixin):
    """What was learnt of a table's columns.

    columns  one each, in the order of the file: name, kind (number, category, boolean or date), example, whether it
             was ever `missing`, and
                 parts       of a number, and three of a date: `median`, and `x` -> `z`, the points of a map to a
                             standard normal distribution, by quantiles, lines between them
                 format      how a date is written, as strptime has it, where it is not ISO
                 categories  in the order of their codes, of a category or boolean
    ignored  name -> why
    missing  words that stand for nothing
    """

    model_input_names = ["numbers", "categories"]

    def __init__(
        self,
        columns: Sequence[dict[str, Any]] = (),
        ignored: dict[str, str] | None = None,
        missing: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.columns = list(columns)
        self.ignored = ignored or {}
        self.missing = list(missing)

    def __call__(self, rows: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Rows by the columns' names -> `numbers` (B, N) float32, NaN where missing, and `categories` (B, C) int64."""
        numbers, codes = self.encode(rows)
        return {"numbers": torch.from_numpy(numbers), "categories": torch.from_numpy(codes).long()}

    def encode(self, rows: Sequence[Record]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """ValueError names the column and the value that does not go with it."""
        numbers: list[NDArray[Any]] = []
        codes: list[NDArray[Any]] = []
        for column in self.columns:
            values = self.values(column, rows)
            if column["kind"] in ("category", "boolean"):
                codes.append(category_codes(values, column))
            else:
                read = dates(values, column) if column["kind"] == "date" else floats(values, column["name"])[None]
                for part, of in zip(column["parts"], read, strict=True):
                    known = of if column["missing"] else np.where(np.isnan(of), part["median"], of)
                    numbers.append(np.interp(known, part["x"], part["z"]))
        return stacked(numbers, len(rows), np.float32), stacked(codes, len(rows), np.int32)

    def values(self, column: Mapping[str, Any], rows: Sequence[Record]) -> list[Any]:
        """Of one column, None where missing. A column that is not there may only have been missing before."""
        name = column["name"]
        if not column["missing"] and any(name not in row for row in rows):
            raise ValueError(f"column '{name}' is not there; it was never empty in the training rows")
        missing = frozenset(self.missing)
        return [nothing(row.get(name), missing) for row in rows]

    @property
    def number_names(self) -> list[str]:
        """Of the parts that are numbers, in the model's order."""
        return [name for column in self.columns for name in part_names(column)]

    @property
    def category_names(self) -> list[str]:
        return [column["name"] for column in self.columns if "categories" in column]


def part_names(column: Mapping[str, Any]) -> list[str]:
    if "parts" not in column:
        return []
    name = column["name"]
    return [f"{name} ({part})" for part in DATE_PARTS] if column["kind"] == "date" else [name]


def nothing(value: Any, missing: Container[str]) -> Any:
    """The value, without blanks around it; None where it stands for nothing, as NaN does however it is spelt."""
    if isinstance(value, str):
        value = value.strip()
        if value in missing or (value[-1:] in "nN" and value.lower().lstrip("+-") == "nan"):
            return None
        return value
    return None if value is None or value != value else value


def floats(values: Sequence[Any], name: str) -> NDArray[np.float64]:
    """(B,), NaN for None."""
    read = numbers(values)
    if read is None:
        wrong = next(value for value in values if not is_number(value))
        raise ValueError(f"column '{name}' holds numbers; found {wrong!r:.60}")
    return read


def numbers(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """(B,), NaN for None; None where one `is_number` not."""
    if bool in set(map(type, values)) or "_" in "".join([value for value in values if isinstance(value, str)]):
        return None
    try:
        read = np.array([math.nan if value is None else float(value) for value in values], np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if np.isinf(read).any() else read


def is_number(value: Any) -> bool:
    """None, 3, 3.0 and "3" are; true is not, nor infinity, nor "1_2", which is one in Python alone."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return False
    try:
        return value is None or math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def dates(values: Sequence[Any], column: Mapping[str, Any]) -> NDArray[np.float64]:
    """(3, B): days since 1970, day of the year, day of the week; NaN for None."""
    form = column.get("format")
    read = np.full((3, len(values)), np.nan)
    for i, value in enumerate(values):
        if value is not None:
            moment = date(value, form)
            if moment is None:
                raise ValueError(f"column '{column['name']}' holds dates {such_as(form)}; found {value!r:.60}")
            seconds = (moment - datetime.datetime(1970, 1, 1)).total_seconds()
            read[:, i] = seconds / 86400, moment.timetuple().tm_yday, moment.weekday()
    return read


def such_as(form: str | None) -> str:
    """How dates are written, in a message."""
    shown = datetime.datetime(2024, 3, 31).strftime(form or "%Y-%m-%d")
    return f"such as {shown}" + (f" ({form})" if form else "")


def date(value: Any, form: str | None = None) -> datetime.datetime | None:
    """A date as `form` has it, or an ISO date with or without time, in UTC; None if it is none."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.datetime.strptime(value, form) if form else datetime.datetime.fromisoformat(value)
        return moment.astimezone(datetime.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None


def category(value: Any) -> str:
    """One word for 3, 3.0, "3" and "3.0"; true is "true"."""
    if isinstance(value, str):
        word = value
    elif isinstance(value, bool):
        return str(value).lower()
    else:
        word = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return word[:-2] if word.endswith(".0") and word[:-2].removeprefix("-").isdecimal() else word


def category_codes(values: Sequence[Any], column: Mapping[str, Any]) -> NDArray[np.int32]:
    """(B,): MISSING for None, UNSEEN for what training did not know; that includes a missing value in a column that was
    never empty."""
    codes = {name: code for code, name in enumerate(column["categories"], FIRST)}
    missing = MISSING if column["missing"] else UNSEEN
    if column["kind"] == "category":
        return np.array(
            [missing if value is None else codes.get(category(value), UNSEEN) for value in values], np.int32
        )
    words = [None if value is None else BOOLEANS.get(category(value).lower(), "") for value in values]
    if "" in words:
        wrong = values[words.index("")]
        raise ValueError(f"column '{column['name']}' holds true or false; found {wrong!r:.60}")
    return np.array([missing if word is None else codes.get(word, UNSEEN) for word in words], np.int32)


def stacked(columns: Sequence[NDArray[Any]], rows: int, dtype: Any) -> NDArray[Any]:
    """(rows, columns), also where there is no column."""
    return np.stack(columns, axis=1).astype(dtype) if columns else np.empty((rows, 0), dtype)
