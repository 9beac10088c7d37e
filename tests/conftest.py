"""Every process of a test run, this one and the daemons, shares one folder of compiled kernels, kept between runs."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    assert config.cache is not None
    os.environ.setdefault("NUMBA_CACHE_DIR", str(config.cache.mkdir("kernels")))
