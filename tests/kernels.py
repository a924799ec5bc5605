"""What this processor has no kernel for is skipped: older ones compute no LSTM in bf16."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bigmodel.errors import ResourceError


@contextmanager
def skipped_without_kernel() -> Iterator[None]:
    try:
        yield
    except ResourceError as e:
        if "this processor cannot compute" not in str(e):
            raise
        pytest.skip(str(e))
