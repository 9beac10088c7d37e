import numpy as np
import pytest

from mpcd.kernels import aes, bits, ot_hash

FULL = 2**64 - 1
ROUND_KEYS = aes.expand_key(np.frombuffer(b"a fixed key, pub", np.uint8))
COUNTS = [0, 1, 7, 63, 64, 65, 128, 255, 256, 257, 600]
TWEAKS = [0, 12345, 2**32 - 5, 2**63 - 4096]


def correlated(n):
    """(q, t, delta, choices): rows of an OT extension from an ideal dealer."""
    rng = np.random.default_rng()
    q = rng.integers(0, FULL, (n, 2), np.uint64, endpoint=True)
    delta = rng.integers(0, FULL, 2, np.uint64, endpoint=True)
    choices = rng.integers(0, 2, n, np.uint8)
    return q, q ^ (delta * choices[:, None].astype(np.uint64)), delta, choices


def low_words(x, tweak):
    out = np.empty_like(x)
    aes.tccr_hash(ROUND_KEYS, x, tweak, out)
    return [int(word) for word in out[:, 0]]


def whole_hashes(x, tweak):
    out = np.empty_like(x)
    aes.tccr_hash(ROUND_KEYS, x, tweak, out)
    return [int(low) | int(high) << 64 for low, high in out]


def entry_pads(h, block, i, use):
    """The pads of leaf i, one two-bit string an entry: h[b][row] are the two hashes of a row."""
    pads = []
    for v in range(2**block):
        pad = 0
        for j in range(block):
            pad ^= h[(v >> j) & 1][i * block + j] >> (32 * use + 2 * v)
        pads.append(pad & 3)
    return pads


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("count", COUNTS)
def test_leaf_pads(block, count):
    for tweak in TWEAKS:
        q, t, delta, choices = correlated(count * block)
        h = [whole_hashes(q, tweak), whole_hashes(q ^ delta, tweak)]
        for uses in (1, 2, 3, 4):
            sent = np.full((count, uses), 0xFFFFFFFF, np.uint32)
            ot_hash.leaf_pads_sender(ROUND_KEYS, q, delta, tweak, block, sent)
            chosen, received = np.full(count, 255, np.uint8), np.full((count, uses), 255, np.uint8)
            ot_hash.leaf_pads_receiver(ROUND_KEYS, t, bits.pack_bits(choices), tweak, block, chosen, received)
            np.testing.assert_array_equal(chosen, choices.reshape(count, block) @ (1 << np.arange(block)))
            for use in range(uses):
                pads = [entry_pads(h, block, i, use) for i in range(count)]
                entries = np.array(pads, np.uint32).reshape(count, 2**block)
                packed = (entries << (2 * np.arange(2**block, dtype=np.uint32))).sum(axis=1, dtype=np.uint32)
                np.testing.assert_array_equal(sent[:, use], packed)
                np.testing.assert_array_equal(received[:, use], entries[np.arange(count), chosen])


@pytest.mark.parametrize("width", [1, 2, 20, 33, 63, 64])
@pytest.mark.parametrize("count", COUNTS)
def test_strings(width, count):
    for tweak in TWEAKS:
        q, t, delta, choices = correlated(count)
        m0, m1, m = (np.full(count, FULL, np.uint64) for _ in range(3))
        ot_hash.string_sender(ROUND_KEYS, q, delta, tweak, width, m0, m1)
        np.testing.assert_array_equal(m0, [h % 2**width for h in low_words(q, tweak)])
        np.testing.assert_array_equal(m1, [h % 2**width for h in low_words(q ^ delta, tweak)])
        ot_hash.string_receiver(ROUND_KEYS, t, tweak, width, m)
        np.testing.assert_array_equal(m, np.where(choices, m1, m0))


@pytest.mark.parametrize("count", COUNTS)
def test_bit_pairs(count):
    words = (count + 63) // 64
    for tweak in TWEAKS:
        q, t, delta, choices = correlated(count)
        sent = [np.full(words, FULL, np.uint64) for _ in range(4)]
        ot_hash.and_sender(ROUND_KEYS, q, delta, tweak, *sent)
        for (lo, hi), x in zip((sent[:2], sent[2:]), (q, q ^ delta), strict=True):
            h = low_words(x, tweak)
            np.testing.assert_array_equal(lo, bits.pack_bits(np.array([v & 1 for v in h], np.uint8)))
            np.testing.assert_array_equal(hi, bits.pack_bits(np.array([v >> 1 & 1 for v in h], np.uint8)))
        received = [np.full(words, FULL, np.uint64) for _ in range(2)]
        ot_hash.and_receiver(ROUND_KEYS, t, tweak, *received)
        mask = bits.pack_bits(choices)
        for got, zero, one in zip(received, sent[:2], sent[2:], strict=True):
            np.testing.assert_array_equal(got, (zero & ~mask) | (one & mask))


def test_tweaks_go_on_where_a_call_stopped():
    q, _, delta, _ = correlated(1000)
    whole, parts = (np.empty((2, 1000), np.uint64) for _ in range(2))
    ot_hash.string_sender(ROUND_KEYS, q, delta, 70, 64, whole[0], whole[1])
    for a, b in ((0, 333), (333, 1000)):
        ot_hash.string_sender(ROUND_KEYS, q[a:b], delta, 70 + a, 64, parts[0, a:b], parts[1, a:b])
    np.testing.assert_array_equal(whole, parts)


def test_wrong_lengths_are_refused():
    q, t, delta, choices = correlated(8)
    words = bits.pack_bits(choices)
    o8, o7 = np.empty(8, np.uint64), np.empty(7, np.uint64)
    for block, count in ((0, 8), (5, 8), (2, 3), (-1, 8)):
        with pytest.raises(ValueError, match="block"):
            ot_hash.leaf_pads_sender(ROUND_KEYS, q, delta, 0, block, np.empty((count, 1), np.uint32))
        with pytest.raises(ValueError, match="block"):
            ot_hash.leaf_pads_receiver(
                ROUND_KEYS, t, words, 0, block, np.empty(count, np.uint8), np.empty((count, 1), np.uint8)
            )
    for uses in (0, 5):
        with pytest.raises(ValueError, match="1 to 4 uses"):
            ot_hash.leaf_pads_sender(ROUND_KEYS, q, delta, 0, 1, np.empty((8, uses), np.uint32))
    c7, c8, p8 = np.empty(7, np.uint8), np.empty(8, np.uint8), np.empty((8, 1), np.uint8)
    with pytest.raises(ValueError, match="differ in length"):
        ot_hash.leaf_pads_receiver(ROUND_KEYS, t, words[:0], 0, 1, c8, p8)
    with pytest.raises(ValueError, match="differ in length"):
        ot_hash.leaf_pads_receiver(ROUND_KEYS, t, words, 0, 1, c7, p8)
    with pytest.raises(ValueError, match="one row"):
        ot_hash.string_sender(ROUND_KEYS, q, delta, 0, 8, o8, o7)
    with pytest.raises(ValueError, match="one row"):
        ot_hash.string_receiver(ROUND_KEYS, t, 0, 8, o7)
    with pytest.raises(ValueError, match="1 to 64 bits"):
        ot_hash.string_receiver(ROUND_KEYS, t, 0, 65, o8)
    with pytest.raises(ValueError, match="delta"):
        ot_hash.string_sender(ROUND_KEYS, q, delta[:1], 0, 8, o8, o8.copy())
    with pytest.raises(ValueError, match="number of words"):
        ot_hash.and_sender(ROUND_KEYS, q, delta, 0, o8[:1], o8[1:2], o8[2:3], o8[3:5])
    with pytest.raises(ValueError, match="number of words"):
        ot_hash.and_receiver(ROUND_KEYS, t, 0, o8[:0], o8[:1])
