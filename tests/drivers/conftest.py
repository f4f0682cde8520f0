"""Words for the tests of drivers."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*abilities): skip the test on a host that lacks one of them")
