import pytest
from paths import ROOT

from stdc_fast import _native


@pytest.fixture(scope="session")
def cuda_targets():
    """Those that this tree's CUDA objects are for. Without any, tests skip; if some are lost, they fail."""
    if not (info := _native.cuda_info())["built"]:
        pytest.skip(info["reason"])
    if not (ROOT / "build/native").is_dir():
        pytest.skip("the module was built elsewhere, and its objects are not here")
    return set(info["targets"])
