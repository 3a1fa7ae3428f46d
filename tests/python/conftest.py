"""Slow tests run where ENGINIX_SLOW is set, as continuous integration does, and when they are named."""

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("ENGINIX_SLOW") or config.option.markexpr or any("::" in arg for arg in config.args):
        return
    skip = pytest.mark.skip(reason="slow: ENGINIX_SLOW=1 runs it")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
