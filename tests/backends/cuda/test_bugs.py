"""Each bug that is planted into the CUDA kernels is found under every schedule, with races watched for."""

import re

import pytest
from cuda_bugs import BUGS, hunted, row, usual
from hosted import SCHEDULES, NotBuilt

USUAL = usual()


@pytest.fixture(scope="module")
def hunt(request):
    """What came of the bugs that are to be looked for: together, as each is one process after another."""
    names = (item.callspec.params["name"] for item in request.session.items if item.path == request.path)
    try:
        return hunted(tuple(names))
    except NotBuilt as error:
        pytest.skip(f"the CUDA sources do not compile for the CPU here: {error}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.wide) for name in BUGS]
)
def test_a_planted_bug_is_found(name, hunt):
    found, bug = hunt[name], BUGS[name]
    print(row(name, found))
    assert not isinstance(found, str), found
    if name == "none":
        assert not any(found["watched"].values()) and not any(found["unwatched"].values())
        return
    for schedule in SCHEDULES:
        assert re.search(bug.found, found["watched"][schedule] or "nothing"), (schedule, found["watched"])
    assert sum(map(bool, found["unwatched"].values())) >= bug.unwatched, found["unwatched"]
