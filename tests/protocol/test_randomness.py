import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.protocol.randomness import Prg

SEED = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")


def keystream(seed, blocks):
    """AES(counter) for counter = 0, 1, ... as 128-bit little-endian, by another library."""
    encryptor = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    return encryptor.update(b"".join(i.to_bytes(16, "little") for i in range(blocks)))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 16, 1001])
def test_words_are_aes_in_counter_mode(n):
    assert Prg(SEED).words(n).tobytes() == keystream(SEED, n)[: 8 * n]


def test_every_value_is_handed_out_once():
    """An odd request leaves half a block unused, never used again."""
    prg = Prg(SEED)
    stream = keystream(SEED, 6)
    assert prg.words(1).tobytes() == stream[:8]
    assert prg.words(3).tobytes() == stream[16:40]
    assert prg.octets(5) == stream[48:53]
    assert prg.seed() == stream[64:80]


def test_streams_of_fresh_generators_differ():
    assert len({Prg.fresh().octets(16) for _ in range(100)}) == 100


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 127, 128, 1000])
def test_bits_have_a_zero_tail(n):
    words = Prg.fresh().bits(n)
    assert len(words) == -(-n // 64)
    as_bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert not as_bits[n:].any()


@pytest.mark.parametrize("width", [1, 2, 7, 8, 17, 31, 32, 33, 63, 64])
def test_uniform_fills_exactly_its_width(width):
    values = Prg.fresh().uniform((40, 50), width)
    assert values.shape == (40, 50)
    assert values.dtype == np.uint64
    assert int(values.max()) < 1 << width
    # Each bit is set in 1000 of 2000 values, give or take: ten standard deviations.
    for bit in range(width):
        assert abs(int((values >> np.uint64(bit) & np.uint64(1)).sum()) - 1000) < 224


def test_uniform_of_nothing():
    assert Prg.fresh().uniform((0, 3), 5).shape == (0, 3)


@pytest.mark.parametrize("seed", [b"", bytes(15), bytes(17)])
def test_a_seed_has_16_bytes(seed):
    with pytest.raises(ValueError, match="16 bytes"):
        Prg(seed)
