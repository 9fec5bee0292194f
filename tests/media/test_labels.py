"""The cases of tests/media/labels.py hold, where the tools are installed."""

import pytest

from tests.media.case import why_not
from tests.media.labels import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case, tmp_path):
    if reason := why_not(case.tool):
        pytest.skip(reason)
    outcome = case.measure(tmp_path)
    assert case.holds(outcome), outcome
