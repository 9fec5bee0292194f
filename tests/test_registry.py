"""The records of published weights: consistent with each other, and what docs/models.md says."""

import dataclasses
import json
import re
from urllib.parse import urlsplit

import pytest
from paths import ROOT

from bench import models_doc
from stdc_fast import registry
from stdc_fast.classes import CITYSCAPES, PASCAL_VOC
from stdc_fast.reference.networks import STAGES

RECORDS = list(registry.RECORDS.values())
NETWORKS = [r for r in RECORDS if r.task == registry.SEGMENTATION]
NAME = re.compile(
    r"(stdc[12])(_seg(?:50|75))?_(in1k|(?:in1k_)?cityscapes|voc12aug)\.(official|mmseg|sg|paddle)"
)
ORIGIN = {"official": "STDC-Seg", "mmseg": "mmsegmentation", "sg": "super-gradients", "paddle": "PaddleSeg"}


def names(variant, data, *origins):
    return {f"{variant}_{one}.{origin}" for one in data for origin in origins}


def test_every_published_file_has_a_record():
    expected = set()
    for variant in STAGES:
        expected |= names(variant, ("cityscapes", "in1k_cityscapes"), "mmseg")
        expected |= names(variant, ("seg50_cityscapes", "seg75_cityscapes", "in1k"), "official", "sg")
        expected |= names(variant, ("in1k",), "mmseg") | names(variant, ("cityscapes", "voc12aug"), "paddle")
    assert set(registry.RECORDS) == expected


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
def test_a_record_agrees_with_its_name(record):
    variant, scale, data, origin = NAME.fullmatch(record.name).groups()
    assert (record.variant, record.publisher) == (variant, ORIGIN[origin])
    assert record.scale == (int(scale[4:]) / 100 if scale else 1)
    assert (record.task == registry.BACKBONE) == (data == "in1k") == (record.classes is None)
    if data != "in1k":
        assert record.classes is (PASCAL_VOC if data == "voc12aug" else CITYSCAPES)
        assert record.terms.startswith("trained on Pascal" if data == "voc12aug" else "trained on Cityscapes")
    if origin == "mmseg":
        assert record.pretrained == ("ImageNet" if data.startswith("in1k_") else None)
    assert record.count_include_pad == (origin != "paddle")


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
def test_files_addresses_and_hashes(record):
    assert re.fullmatch(r"[\w.-]+\.(pth|tar|pdparams)", record.file)
    for url in record.urls:
        parts = urlsplit(url)
        assert parts.scheme == "https" and parts.hostname and " " not in url
    # mmsegmentation ends names in the first digits of the hash.
    in_name = re.search(r"-([0-9a-f]{8})\.pth$", record.file)
    assert record.sha256 == (in_name[1] if in_name else None)
    assert (record.sha256 is not None) == (record.publisher == "mmsegmentation")
    if in_name:
        assert record.urls[0].endswith(f"/{record.file}")
    assert bool(record.urls) != (record.publisher == "STDC-Seg")
    assert "https://" in record.page


def test_scores_are_fractions_in_the_order_that_more_views_give():
    for record in NETWORKS:
        scores = [s for s in (record.miou, record.miou_flip, record.miou_ms_flip) if s is not None]
        assert scores and all(0.6 < s < 0.8 for s in scores)
        assert min(scores) == record.miou
        assert record.miou_split and record.label_scale in (0.5, 0.75, 1)


def test_more_pretraining_more_layers_and_larger_inputs_score_higher():
    """A swapped number would show."""

    def miou(name):
        return registry.RECORDS[name].miou

    for record in NETWORKS:
        larger = record.name.replace("stdc1", "stdc2")
        assert larger == record.name or miou(larger) > record.miou
        for less, more in (("seg50", "seg75"), ("_cityscapes.mmseg", "_in1k_cityscapes.mmseg")):
            other = record.name.replace(less, more)
            if other in registry.RECORDS and other != record.name and "in1k" not in record.name:
                assert miou(other) > record.miou


def test_records_are_frozen_and_their_facts_are_json():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORDS[0].sha256 = "0"
    for record in RECORDS:
        facts = record.facts()
        assert json.loads(json.dumps(facts))["name"] == record.name
        if record.classes is not None:
            assert len(facts["classes"]) == len(facts["palette"]) == len(record.classes)


def test_the_palette_of_voc():
    colours = dict(zip(PASCAL_VOC.names, PASCAL_VOC.palette, strict=True))
    assert len(colours) == 21
    assert colours["background"] == (0, 0, 0) and colours["aeroplane"] == (128, 0, 0)
    assert colours["person"] == (192, 128, 128) and colours["tvmonitor"] == (0, 64, 128)


def test_the_document_is_what_the_records_give(monkeypatch):
    document = (ROOT / "docs" / "models.md").read_text()
    assert document == models_doc.text(), "run python -m bench.models_doc"
    for record in RECORDS:
        assert f"`{record.name}`" in document and record.terms in document
        assert all(note in document for note in record.notes)
    row = "| STDC1 | ImageNet | 74.94 | 76.97 | - | - | `stdc1_in1k_cityscapes.mmseg` |"
    assert row in document.splitlines()
    name = "stdc1_in1k_cityscapes.mmseg"
    changed = dataclasses.replace(registry.RECORDS[name], miou=0.7495)
    monkeypatch.setitem(registry.RECORDS, name, changed)
    assert models_doc.text() != document


def test_the_command_writes_it(tmp_path, capsys):
    models_doc.main(["--out", str(tmp_path / "models.md")])
    assert (tmp_path / "models.md").read_text() == models_doc.text()
    assert str(tmp_path) in capsys.readouterr().err


def test_the_readme_counts_them():
    assert f"lists {len(RECORDS)} published files of {len(ORIGIN)}" in (
        ROOT / "README.md"
    ).read_text().replace("four", "4")
