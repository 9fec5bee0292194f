"""The cases of tests/media/labels.py hold, where the tools are installed."""

import pytest

from tests.media.case import version
from tests.media.labels import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case, tmp_path):
    if version(case.tool) is None:
        pytest.skip(f"{case.tool} is not installed")
    outcome = case.measure(tmp_path)
    assert case.holds(outcome), outcome
