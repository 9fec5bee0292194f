"""The tables of docs/export.md are those of their records."""

import json

import pytest
from paths import ROOT

from bench import export_parity
from bench.words import between

PAGE = (ROOT / "docs/export.md").read_text()


def test_parity():
    lines = (ROOT / "docs/results/export.jsonl").read_text().splitlines()
    made = export_parity.summary([json.loads(line) for line in lines])
    assert "not recorded" not in made
    assert between(PAGE, export_parity.BEGIN, export_parity.END, f"\n{made}\n") == PAGE


def test_speed():
    pytest.importorskip("onnxruntime")
    from bench import export_speed

    made = export_speed.summary(json.loads((ROOT / "docs/results/export_speed.json").read_text()))
    assert between(PAGE, export_speed.BEGIN, export_speed.END, f"\n{made}\n") == PAGE
