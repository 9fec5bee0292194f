"""The summary of real checkpoints in the document is that of the records."""

import json

import pytest

from bench import check_checkpoints


def test_the_document_has_the_records_of_now():
    text = check_checkpoints.DOCUMENT.read_text()
    assert check_checkpoints.written(text) == text


def test_a_file_that_lost_a_tensor_is_not_summarised():
    records = [json.loads(line) for line in check_checkpoints.RECORDS.read_text().splitlines()]
    read = next(r for r in records if "error" in r)
    check_checkpoints.summary([read])
    with pytest.raises(ValueError, match="tensors"):
        check_checkpoints.summary([read | {"true_tensors": read["true_tensors"] + 1}])
