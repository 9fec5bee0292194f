#!/usr/bin/env bash
# nncf 3.4.0: `nncf.set_log_level(level)` sets not only the level of NNCF's logger and of its own handler, but of every
# handler that anybody put on the logger "nncf". pytest 9.2.0 puts the handler of `caplog` on each logger that does not
# propagate, which NNCF's does not, and the same object is on the root logger. So one call of set_log_level(ERROR) in a
# test leaves `caplog` empty for warnings of all loggers in all tests after it in the process.
# Seen: the second test below, which has nothing to do with NNCF, does not see its own warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q install nncf==3.4.0 pytest==9.2.0
cat > test_levels.py << 'TEST'
import logging


def test_of_nncf(caplog):
    import nncf


def test_that_quietens(caplog):
    import nncf

    assert caplog.handler.level == logging.NOTSET
    nncf.set_log_level(logging.ERROR)


def test_of_something_else(caplog):
    logging.getLogger("mine").warning("look")
    print("caplog has", repr(caplog.text), "at level", logging.getLevelName(caplog.handler.level))
    assert logging.getLogger("mine").isEnabledFor(logging.WARNING)
    assert caplog.text == "" and caplog.handler.level == logging.ERROR
TEST
venv/bin/python -m pytest -q -s -p no:cacheprovider test_levels.py
