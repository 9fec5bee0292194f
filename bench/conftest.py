"""Options of the latency suite."""


def _size(text):
    height, width = map(int, text.split("x"))
    return height, width


def pytest_addoption(parser):
    group = parser.getgroup("stdc_fast")
    group.addoption("--stdc-model", default="stdc1_camvid", help="embedded name, file, stdc1 or stdc2")
    group.addoption("--stdc-size", type=_size, default="512x1024", help="HEIGHTxWIDTH")
    group.addoption("--stdc-batch", type=int, default=1)
    group.addoption("--stdc-scopes", default="labels", help="of logits, labels, frame; commas between")
    group.addoption("--stdc-peers", default="all", help="all, none, or names with commas")
    group.addoption("--stdc-device", default="auto")


def pytest_generate_tests(metafunc):
    from stdc_fast.benchmark.selection import parse

    option = metafunc.config.getoption
    selection = parse(
        scopes=option("--stdc-scopes"),
        peers=option("--stdc-peers"),
        device=option("--stdc-device"),
    )
    names = [f"{spec.name} {spec.dtype}" for spec in selection.specs]
    metafunc.parametrize("spec", selection.specs, ids=names)
    metafunc.parametrize("scope", selection.scopes)
