"""Sources that all tests of jobs start from."""

import jobs
import pytest


@pytest.fixture
def photos(photo, tmp_path):
    """A folder of ten pictures in three folders."""
    return jobs.folder_of(photo, tmp_path / "photos", 10)
