"""Two sides that do not know each other yet."""

import pytest

from tests.daemon.network.sides import Side


@pytest.fixture
def sides(identities, tmp_path):
    a, b = identities
    return Side(a, "alpha", tmp_path), Side(b, "beta", tmp_path)
