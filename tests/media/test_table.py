"""docs/media.md is what its command writes, and every case there holds."""

from bench import media_table


def test_the_page_is_of_its_records():
    text = media_table.DOCUMENT.read_text()
    assert media_table.written(text) == text, "run python -m bench.media_table"


def test_what_was_recorded_holds():
    rows = media_table.read("media.jsonl")
    assert [row["case"] for row in rows if row["holds"] is False] == []
    assert not any(row["finds"] for row in media_table.read("mutated.jsonl"))
