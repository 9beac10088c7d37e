"""Every process of a test run, this one and the daemons, shares one folder of compiled kernels, kept between runs."""

import os
import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # A shell's job in the background does not hear Ctrl-C, nor would any process that a test starts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert config.cache is not None
    os.environ.setdefault("NUMBA_CACHE_DIR", str(config.cache.mkdir("kernels")))
