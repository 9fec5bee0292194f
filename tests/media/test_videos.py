"""The videos of the table: labels as of the same picture as PNG, times as of the frames' numbers."""

import pytest

from tests.media.case import why_not

pytest.importorskip("av")
from tests.media.videos import CASES, COLOURS

#: The others take longer; the table has them.
QUICK = (
    "H.264, untagged, 1280x720, BT.709", "H.264, full range", "HEVC, PQ", "HEVC, HLG", "raw NV12",
    "Motion JPEG",
)  # fmt: skip


@pytest.mark.parametrize(
    "case", [c for c in CASES if c not in COLOURS or c.name in QUICK], ids=lambda c: c.name
)
def test_cases(case, tmp_path):
    if reason := why_not(case.tool):
        pytest.skip(reason)
    outcome = case.measure(tmp_path)
    assert case.holds(outcome), outcome
