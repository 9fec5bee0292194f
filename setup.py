"""Packaging; everything declarative is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

init = (Path(__file__).parent / "stdc_fast" / "__init__.py").read_text()

setup(
    version=re.search(r'^__version__ = "([^"]+)"$', init, re.M)[1],
    packages=find_packages(include=["stdc_fast", "stdc_fast.*"]),
    package_data={"stdc_fast": ["weights/*.safetensors", "assets/*.jpg"]},
)
