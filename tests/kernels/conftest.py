"""A fixture for the tests of the C kernels."""

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def home():
    """A folder that other users can enter, unlike pytest's own, and cannot write."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        path = Path(made).resolve()
        path.chmod(0o755)
        yield path
