"""mpcctl bench with tiny sizes: two real processes over TLS. Figures are not looked at, only that they can be."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mpcd.cli import bench as cli
from mpcd.protocol.ot.consistency import ANSWER_BYTES

MPCCTL = (sys.executable, "-m", "mpcd.cli.main", "bench")
ROW_KEYS = {
    "name", "unit", "count", "runs", "seconds", "seconds_each", "per_second", "cpu_seconds", "cpu_seconds_each",
    "loop_cpu_seconds", "waiting_seconds", "sending_seconds", "sent", "bytes", "bytes_each", "flows", "kernels",
    "steps",
}  # fmt: skip
KEYS = {"format", "what", "options", "started", "load", "parties", "rows", "exact", "link"}
TINY = {
    "link": ["--megabytes", "5"],
    "ot": ["--extensions", "iknp,softspoken4", "--cots", "5000"],
    "relu": ["--extensions", "softspoken2", "--elements", "300"],
    "linear": ["--layers", "3x3 128-32 7", "--batch", "2"],
    "model": ["densenet-tiny", "--batch", "3", "--images", "2", "--in-flight", "2", "--extension", "softspoken4"],
}


def run(*words, **options):
    return subprocess.run([*MPCCTL, *words], capture_output=True, text=True, timeout=600, check=False, **options)


def measured(*words):
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def results():
    """Every subject once, as asked for."""
    found = {}

    def get(what):
        if what not in found:
            found[what] = measured(what, *TINY[what], "--runs", "2")
        return found[what]

    return get


@pytest.mark.parametrize("what", TINY)
def test_a_result_has_its_keys_and_its_figures_make_sense(results, what):
    result = results(what)
    assert set(result) == KEYS
    assert (result["format"], result["what"]) == (1, what)
    for party in result["parties"]:
        assert party["peak_memory_bytes"] > 10_000_000
        machine = party["machine"]
        assert machine["aes_path"] in ("vaes512", "aesni", "portable")
        assert machine["cores"] >= 1
        assert {"numpy", "numba"} <= set(machine["libraries"])
        assert machine["threads"]["NUMBA_NUM_THREADS"] == "1"
    assert result["rows"]
    for row in result["rows"]:
        assert set(row) == ROW_KEYS
        assert row["runs"] == 2
        spread = row["seconds"]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert row["seconds_each"] == pytest.approx(spread["median"] / row["count"])
        assert row["bytes"] == sum(row["sent"])
        assert all(
            0 <= loop <= cpu + 0.05 for loop, cpu in zip(row["loop_cpu_seconds"], row["cpu_seconds"], strict=True)
        )


def row(result, name):
    return next(row for row in result["rows"] if row["name"] == name)


def test_link_counts_what_it_sends(results):
    there = row(results("link"), "model owner to data owner")
    assert there["count"] < there["sent"][0] < there["count"] * 1.001
    assert there["sent"][1] < 100  # the answer
    both = row(results("link"), "both ways at once")
    assert both["count"] == 2 * there["count"]
    assert both["sent"][0] == both["sent"][1]


def test_bits_of_a_correlated_ot_are_its_extension_s(results):
    """127 and 31 bits, but for whole blocks, headers and the check."""
    for extension, bits in (("iknp", 128), ("softspoken4", 31)):
        cot = row(results("ot"), f"{extension} random COT")
        assert cot["count"] == 5000
        check = 8 * (ANSWER_BYTES + 16 * bits) / 5000  # its mask is a block more
        assert bits + check <= 8 * cot["bytes_each"] < (bits + check) * 1.1
        assert cot["sent"][0] < 100  # all from the receiver, but for the check's key


def test_relu_has_both_phases_and_their_sum(results):
    result = results("relu")
    names = [f"softspoken2 {kind}" for kind in ("relu", "truncate-relu", "truncate", "mix")]
    for name in names:
        parts = [row(result, f"{name}, {phase}") for phase in ("offline", "online", "offline + online")]
        assert all(part["count"] == 300 for part in parts)
        assert parts[2]["bytes"] == parts[0]["bytes"] + parts[1]["bytes"]
        assert parts[1]["flows"] > 4


def test_linear_has_triples_and_the_online_product(results):
    result = results("linear")
    online = row(result, "3x3 128-32 7, online")
    assert online["count"] == 2
    assert online["sent"][0] == 0  # only the data owner speaks
    assert row(result, "3x3 128-32 7, triples")["bytes_each"] > online["bytes_each"]


def test_a_model_is_bit_exact_and_its_parts_add_up(results):
    result = results("model")
    assert result["exact"] is True
    matrix, ots, online = (row(result, name) for name in ("matrix triples", "oblivious transfers", "online"))
    assert (matrix["count"], ots["count"], online["count"]) == (3, 2, 2)
    whole = row(result, "offline + online")
    assert whole["seconds_each"] == pytest.approx(sum(part["seconds_each"] for part in (matrix, ots, online)))
    assert whole["bytes_each"] == pytest.approx(sum(part["bytes_each"] for part in (matrix, ots, online)), abs=3)
    assert {step["name"] for step in ots["steps"][0]} >= {"LeafNeed", "AndNeed", "StringNeed", "write"}
    assert any(kernel["name"] == "linear._open" for kernel in online["kernels"][0])


def test_a_result_can_be_saved_and_compared_with(results, tmp_path):
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"format": 1, "results": [results("link"), results("relu")]}))
    ratios = {(r["what"], r["name"]): r for r in measured("link", *TINY["link"], "--compare", saved)["compared"]}
    assert ratios["link", "round trip"]["bytes"] == 1
    assert ratios["link", "round trip"]["seconds"] > 0
    assert all(what == "link" for what, _ in ratios)


def test_twice_as_fast_is_a_ratio_of_two(results):
    now = results("relu")
    before = json.loads(json.dumps(now))
    for r in before["rows"]:
        r["seconds_each"] *= 2
        r["cpu_seconds_each"] = [3 * cpu for cpu in r["cpu_seconds_each"]]
    for ratio in cli.compared(now, before):
        assert ratio["seconds"] == pytest.approx(2)
        assert ratio["cpu_seconds"] == [pytest.approx(3)] * 2
        assert ratio["bytes"] == pytest.approx(1)


@pytest.mark.parametrize("what", TINY)
def test_what_a_person_sees(results, what, capsys):
    """Rendering takes every row of every subject."""
    cli._render(results(what))
    seen = capsys.readouterr().out
    assert "AES by" in seen
    for r in results(what)["rows"]:
        assert r["name"].split()[0] in seen


def test_an_imitated_link_is_as_slow_as_asked_for():
    result = measured("link", "--megabytes", "5", "--runs", "1", "--link", "200,10")
    assert result["link"] == {"megabits": 200, "round_trip_ms": 10}
    assert row(result, "round trip")["seconds_each"] >= 0.01
    assert row(result, "model owner to data owner")["per_second"] <= 25e6 * 1.01


def test_two_parties_started_apart(tmp_path):
    """As on two machines or in two network namespaces."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = ["link", "--megabytes", "5", "--runs", "1", "--folder", str(tmp_path), "--json"]
    server = subprocess.Popen(
        [*MPCCTL, *words, "--party", "0", "--listen", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        client = run(*words, "--party", "1", "--connect", address)
        assert client.returncode == 0, client.stderr
        assert json.loads(client.stdout)["what"] == "link"
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["ot", "--extensions", "rot13"], 2, "rot13"),
        (["linear", "--layers", "none"], 2, "none"),
        (["model", "no-such-model"], 2, "no-such-model"),
        (["model", "densenet-tiny", "--extension", "iknp,softspoken2"], 2, "one OT extension"),
        (["link", "--peer", "vendor", "--socket", os.devnull], 3, "no daemon"),
        (["link", "--party", "1"], 2, "--connect"),
        (["link", "--link", "fast"], 2, "fast"),
        (["link", "--compare", os.devnull], 9, "no saved result"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, status, said):
    done = run(*words)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
