"""Tests marked `browser` run wherever there is a Chromium; elsewhere they are counted as left out."""

import pytest

from tests.reports import browser as chromium


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: opens a page in headless Chromium")


def pytest_collection_modifyitems(config, items):
    if chromium.find():
        return
    left_out = [item for item in items if item.get_closest_marker("browser")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def browser():
    """A headless browser, started once."""
    with chromium.Browser() as started:
        yield started
