"""The table of docs/serving.md is that of its record, and a row says what its turns say."""

import json

import pytest
from paths import ROOT

from bench import serve_load
from bench.words import between


def test_the_table_is_that_of_the_record():
    page = (ROOT / "docs/serving.md").read_text()
    about = json.loads((ROOT / "docs/results/serve.json").read_text())
    made = serve_load.document(about)
    assert between(page, serve_load.BEGIN, serve_load.END, made) == page
    assert [row["scope"] for row in about["rows"]] == [scope[0] for scope in serve_load.SCOPES]


def test_a_row():
    """Two rounds of an engine that takes half a second a picture: as fast, and with waits of two pictures."""
    turns = [{"rate": 2.0, "seconds": [1.0] * 50, "refused": 3, "cpu_seconds": 0.6} for _ in range(2)]
    engines = [{"file": 2.0, "frame": 2.5, "cpu_seconds": 0.5}] * 2
    row = serve_load.row("16 clients", turns, [0.5, 0.25], engines)
    assert row["over_engine"]["p50"] == 1 and row["p50_seconds"] == row["p99_seconds"] == 1
    assert row["p99_over_single"]["p50"] == 3 and row["p99_over_engine"]["p50"] == 2
    assert row["cpu_over_engine"]["p50"] == pytest.approx(1.2)
    assert (row["answers"], row["refused"]) == (100, 6)
