"""Pictures that real tools write are labelled as the plain photo, or refused, or announced."""

import pytest

from tests.media.case import why_not
from tests.media.pictures import CASES, PROFILES

#: Those that start the command line; tests/cli has them in this process.
PROGRAMS = ("stdin", "--out")


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if not any(word in case.name for word in PROGRAMS)],
    ids=lambda case: case.name,
)
def test_case(case, tmp_path):
    if reason := why_not(case.tool):
        pytest.skip(reason)
    if ("profile" in case.name or "Adobe" in case.name) and not PROFILES.is_dir():
        pytest.skip(f"no profiles in {PROFILES}")
    outcome = case.measure(tmp_path)
    assert case.holds(outcome), outcome
