"""The daemons of the system tests."""

from tests.system.conftest import cohort, make_pair, pair, pytest_runtest_makereport, small_model

__all__ = ["cohort", "make_pair", "pair", "pytest_runtest_makereport", "small_model"]
