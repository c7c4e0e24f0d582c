"""Lets the tests of this folder import its helper modules by name; a fixture for C kernels."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def home():
    """A folder that other users can enter, unlike pytest's own, and cannot write."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        path = Path(made).resolve()
        path.chmod(0o755)
        yield path
