"""policy.toml: what is allowed unasked, and that a mistake in it is named."""

import pytest

from mpcd.daemon.errors import ConfigError
from mpcd.daemon.sessions import approval

GOOD = """
[[allow]]
peer = "hospital"
model = "chexnet"
max_images = 10
budget = 25

[[allow]]
peer = "clinic"
model = "*"
max_images = 5

[offline]
max_units = 7
"""


def load(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return approval.load(path)


def test_no_file_allows_nothing(tmp_path):
    policy = approval.load(tmp_path / "policy.toml")
    assert not policy.approves("hospital", "chexnet", "scores", 1, 0)
    assert policy.max_units == approval.DEFAULT_MAX_UNITS


@pytest.mark.parametrize(
    ("peer", "model", "reveal", "images", "used", "allowed"),
    [
        ("hospital", "chexnet", "scores", 10, 0, True),
        ("hospital", "chexnet", "scores", 10, 15, True),
        ("hospital", "chexnet", "scores", 10, 16, False),
        ("hospital", "chexnet", "scores", 11, 0, False),
        ("hospital", "other", "scores", 1, 0, False),
        ("hospital", "chexnet", "weights", 1, 0, False),
        ("clinic", "anything", "scores", 5, 0, True),
        ("clinic", "anything", "scores", 1, 5, False),
        ("stranger", "chexnet", "scores", 1, 0, False),
    ],
)
def test_rules(tmp_path, peer, model, reveal, images, used, allowed):
    policy = load(tmp_path, GOOD)
    assert policy.approves(peer, model, reveal, images, used) is allowed
    assert policy.max_units == 7


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[allow", "policy.toml"),
        ("[[alow]]\npeer='x'", "alow"),
        ("[[allow]]\nmodel='m'\nmax_images=1", "peer"),
        ("[[allow]]\npeer='p'\nmax_images=1", "model"),
        ("[[allow]]\npeer='p'\nmodel='m'", "max_images"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=-1", "max_images"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=true", "max_images"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=1\nbugdet=3", "bugdet"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=1\nreveal=['weights']", "reveal"),
        ("allow = 3", "allow"),
        ("allow = [3]", "number 1"),
        ("[offline]\nmax_units='x'", "max_units"),
    ],
)
def test_mistakes_are_named(tmp_path, text, named):
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, text)
