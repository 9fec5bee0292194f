"""A few of the mutated files; ``python -m tests.fuzz.mutated`` tries thousands."""

import pytest

from tests.fuzz import mutated


@pytest.mark.parametrize("kind", mutated.SHARES)
def test_mutated_files_are_taken_or_refused(kind):
    row = mutated.run(kind, range(mutated.SHARES[kind]), seconds=60, megabytes=2000, keep=None)
    if not row["files"]:
        pytest.skip(row["why"])
    assert row["finds"] == [] and row["refused"] > 0


def test_a_find_is_found():
    """The same where a target raises, writes, or never answers."""
    outcomes = {
        "raise": "ZeroDivisionError", "write": "left behind: ['left']", "exit": "the process ended with 3",
        "hang": "no answer in 2 s",
    }  # fmt: skip
    for name, expected in outcomes.items():
        worker = mutated.Worker("broken", 2.0)
        try:
            assert expected in worker.run(name, b"")[0]
        finally:
            worker.close()
