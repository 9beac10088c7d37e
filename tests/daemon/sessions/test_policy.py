"""policy.toml: what is allowed unasked, how much, when; and that a mistake in it is named, and allows nothing."""

import datetime
import math

import pytest

from mpcd.daemon.errors import ConfigError, Refused
from mpcd.daemon.sessions import policy as policies
from mpcd.daemon.sessions.policy import Asked, Hours, NotNow, Policy

GOOD = """
expires = "2w"
software = "same"
approved_software = ["abc"]

[[allow]]
peer = "hospital"
model = "chexnet"
max_images = 10
budget = 25
runs = 3
per = "30d"

[[allow]]
peer = "clinic"
model = "*"
max_images = 5

[offline]
max_units = 7
peers = ["vendor"]

[hours]
allow = ["mon-fri 19:00-07:00", "sat,sun 00:00-24:00"]

[cohort]
min_images = 100
min_positives = 10
min_negatives = 20
"""


def load(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return policies.load(path)


def test_no_file_allows_nothing_unasked_and_forbids_nothing(tmp_path):
    policy = policies.load(tmp_path / "policy.toml")
    assert policy == Policy()
    assert policy.rules == ()
    assert policy.max_units == policies.DEFAULT_MAX_UNITS
    assert math.isinf(policy.open_for())
    policy.check_offline("anybody")


def test_everything_in_one_file(tmp_path):
    policy = load(tmp_path, GOOD)
    assert (policy.expires, policy.same_software, policy.approved_software) == (14 * 86400, True, ("abc",))
    assert (policy.max_units, policy.offline_peers) == (7, ("vendor",))
    assert (policy.cohort.min_images, policy.cohort.min_positives, policy.cohort.min_negatives) == (100, 10, 20)
    assert (policy.rules[0].runs, policy.rules[0].per) == (3, 30 * 86400)
    assert (policy.rules[1].runs, policy.rules[1].per, policy.rules[1].budget) == (None, None, 5)
    policy.check_offline("vendor")
    with pytest.raises(Refused, match="outside an approved session"):
        policy.check_offline("other")


@pytest.mark.parametrize(
    ("peer", "model", "reveal", "images", "asked", "allowed"),
    [
        ("hospital", "chexnet", "scores", 10, Asked(), True),
        ("hospital", "chexnet", "scores", 10, Asked(15, 2), True),
        ("hospital", "chexnet", "scores", 10, Asked(16, 2), False),
        ("hospital", "chexnet", "scores", 1, Asked(3, 3), False),
        ("hospital", "chexnet", "scores", 11, Asked(), False),
        ("hospital", "other", "scores", 1, Asked(), False),
        ("hospital", "chexnet", "weights", 1, Asked(), False),
        ("clinic", "anything", "scores", 5, Asked(0, 1000), True),
        ("clinic", "anything", "scores", 1, Asked(5, 1), False),
        ("stranger", "chexnet", "scores", 1, Asked(), False),
    ],
)
def test_rules(tmp_path, peer, model, reveal, images, asked, allowed):
    rules = load(tmp_path, GOOD).rules
    assert any(r.covers(peer, model, reveal, images) and r.leaves_room(images, asked) for r in rules) is allowed


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
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=1\nruns='3'", "runs"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=1\nper='month'", "per"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=1\nper=30", "per"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=1\nreveal=['weights']", "reveal"),
        ("[[allow]]\npeer='p'\nmodel='m'\nmax_images=1\nreveal='scores'", "reveal"),
        ("allow = 3", "allow"),
        ("allow = [3]", "number 1"),
        ("[offline]\nmax_units='x'", "max_units"),
        ("[offline]\npeers='vendor'", "peers"),
        ("offline = 3", "offline"),
        ("hours = ['19:00-07:00']", "hours"),
        ("[hours]\nallow = []", "no hours"),
        ("[hours]\nallow = ['19-7']", "19-7"),
        ("[hours]\nallow = ['19:00-24:01']", "19:00-24:01"),
        ("[hours]\nallow = ['24:00-07:00']", "24:00-07:00"),
        ("[hours]\nallow = ['07:00-07:00']", "07:00-07:00"),
        ("[hours]\nallow = ['monday 07:00-08:00']", "monday"),
        ("[hours]\nallow = ['mon- 07:00-08:00']", "mon-"),
        ("[hours]\ndeny = ['07:00-08:00']", "deny"),
        ("[cohort]\nmin_image = 3", "min_image"),
        ("[cohort]\nmin_images = 1.5", "min_images"),
        ("expires = 7", "expires"),
        ("expires = '367d'", "expires"),
        ("expires = '0d'", "expires"),
        ("software = 'any'", "software"),
        ("approved_software = 'abc'", "approved_software"),
        ("bandwidth = 3", "bandwidth"),
    ],
)
def test_mistakes_are_named(tmp_path, text, named):
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, text)


def test_a_policy_with_a_mistake_allows_no_work():
    policy = policies.unusable(ConfigError("policy.toml: the file has 'hors'"))
    for ask in (policy.check_usable, policy.open_for, lambda: policy.check_offline("vendor")):
        with pytest.raises(NotNow) as refused:
            ask()
        assert "hors" not in str(refused.value), "the peer reads this"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("366d", 31622400),
     ("367d", None), ("1y", None), ("7", None), ("-7d", None), ("07d", None), (" 7d", None), (7, None), (None, None)],
)  # fmt: skip
def test_durations(text, seconds):
    assert policies.seconds(text) == seconds


def at(text):
    """2026-11-23 is a Monday."""
    days = {"mon": 23, "tue": 24, "fri": 27, "sat": 28, "sun": 29}
    return datetime.datetime.strptime(f"2026-11-{days[text[:3]]} {text[4:]}", "%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("allow", "now", "minutes", "opens"),
    [
        ("19:00-07:00", "mon 19:00", 720, "mon 19:00"),
        ("19:00-07:00", "mon 18:59", 0, "mon 19:00"),
        ("19:00-07:00", "tue 06:59", 1, "tue 06:59"),
        ("19:00-07:00", "tue 07:00", 0, "tue 19:00"),
        ("19:00-07:00", "sun 23:00", 480, "sun 23:00"),
        ("00:00-24:00", "mon 00:00", math.inf, "mon 00:00"),
        ("mon 00:00-24:00", "mon 12:00", 720, "mon 12:00"),
        ("mon 00:00-24:00", "tue 00:00", 0, "mon 00:00"),
        ("sun 22:00-02:00", "mon 01:00", 60, "mon 01:00"),
        ("fri-sun 20:00-24:00", "fri 19:00", 0, "fri 20:00"),
        ("sat-mon 20:00-24:00", "mon 20:30", 210, "mon 20:30"),
        ("sat-mon 20:00-24:00", "tue 20:30", 0, "sat 20:00"),
    ],
)
def test_hours(tmp_path, allow, now, minutes, opens):
    hours = load(tmp_path, f'[hours]\nallow = ["{allow}"]').hours
    assert hours.open_for(at(now)) == minutes * 60
    begins = hours.opens(at(now))
    assert begins.strftime("%a %H:%M").lower() == opens
    assert hours.open_for(begins) > 0


def test_hours_that_meet_are_one(tmp_path):
    hours = load(tmp_path, GOOD).hours
    # From Friday's evening through the weekend: Sunday ends at midnight, Monday's morning belongs to nobody.
    assert hours.open_for(at("fri 19:00")) == (5 + 48) * 3600
    assert hours.open_for(at("mon 00:00")) == 0
    assert math.isinf(Hours().open_for(at("mon 00:00")))
