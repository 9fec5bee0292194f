"""Each bug that is planted into the CUDA kernels is found under every schedule, with races watched for."""

import re

import pytest
from cuda_bugs import BUGS, hunted, row
from hosted import SCHEDULES, NotBuilt


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name):
    try:
        found, bug = hunted()[name], BUGS[name]
    except NotBuilt as error:
        pytest.skip(f"the CUDA sources do not compile for the CPU here: {error}")
    print(row(name, found))
    assert not isinstance(found, str), found
    if name == "none":
        assert not any(found["watched"].values()) and not any(found["unwatched"].values())
        return
    for schedule in SCHEDULES:
        assert re.search(bug.found, found["watched"][schedule] or "nothing"), (schedule, found["watched"])
    assert sum(map(bool, found["unwatched"].values())) >= bug.unwatched, found["unwatched"]
