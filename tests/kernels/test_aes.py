import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpcd.kernels import aes, aes_portable

MODULES = [aes, aes_portable]
SIZES = [0, 1, 7, 15, 16, 17, 31, 63, 64, 65, 128, 255, 256, 257, 300]
FULL = 2**64 - 1
LAST = 2**63 - 300

both = pytest.mark.parametrize("module", MODULES, ids=["chosen", "portable"])


def array(data):
    return np.frombuffer(data, np.uint8).view(np.uint64).reshape(-1, 2)


def key_array(key):
    return np.frombuffer(key, np.uint8)


def encrypt_blocks(key, x):
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return array(encryptor.update(np.ascontiguousarray(x).tobytes()))


def counters(start, n):
    return array(b"".join((start + i).to_bytes(16, "little") for i in range(n)))


def tccr_hash(key, x, tweak):
    once = encrypt_blocks(key, x)
    return encrypt_blocks(key, once ^ counters(tweak, len(x))) ^ once


@both
def test_fips_197_key_expansion(module):
    """Appendix A.1."""
    keys = module.expand_key(key_array(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")))
    assert keys.shape == (11, 2)
    assert keys[0].tobytes().hex() == "2b7e151628aed2a6abf7158809cf4f3c"
    assert keys[1].tobytes().hex() == "a0fafe1788542cb123a339392a6c7605"
    assert keys[2].tobytes().hex() == "f2c295f27a96b9435935807a7359f67f"
    assert keys[9].tobytes().hex() == "ac7766f319fadc2128d12941575c006e"
    assert keys[10].tobytes().hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"


@both
@pytest.mark.parametrize(
    ("key", "plain", "cipher"),
    [
        # FIPS 197, appendices B and C.1
        ("2b7e151628aed2a6abf7158809cf4f3c", "3243f6a8885a308d313198a2e0370734", "3925841d02dc09fbdc118597196a0b32"),
        ("000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
        # SP 800-38A, F.1.1
        (
            "2b7e151628aed2a6abf7158809cf4f3c",
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
            "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
            "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"
            "43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4",
        ),
    ],
)
def test_published_blocks(module, key, plain, cipher):
    x = array(bytes.fromhex(plain))
    out = np.empty_like(x)
    module.encrypt_blocks(module.expand_key(key_array(bytes.fromhex(key))), x, out)
    assert out.tobytes().hex() == cipher


@both
def test_sp_800_38a_counter_mode(module):
    """F.5.1, its big-endian counter blocks given as they are: ours are little endian."""
    first = int.from_bytes(bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), "big")
    blocks = array(b"".join((first + i).to_bytes(16, "big") for i in range(4)))
    plain = array(
        bytes.fromhex(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
            "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
        )
    )
    out = np.empty_like(blocks)
    module.encrypt_blocks(module.expand_key(key_array(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))), blocks, out)
    assert (out ^ plain).tobytes().hex() == (
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
        "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
    )


@both
def test_every_byte_through_the_s_box(module):
    """A block of equal bytes a under the zero key: each of the 256 inputs of the first S-box layer."""
    x = np.repeat(np.arange(256, dtype=np.uint8), 16).view(np.uint64).reshape(256, 2)
    out = np.empty_like(x)
    module.encrypt_blocks(module.expand_key(np.zeros(16, np.uint8)), x, out)
    np.testing.assert_array_equal(out, encrypt_blocks(bytes(16), x))


@both
@pytest.mark.parametrize("n", SIZES)
@settings(max_examples=5, deadline=None)
@given(
    key=st.binary(min_size=16, max_size=16), data=st.randoms(use_true_random=True), tweak=st.integers(0, 2**63 - 300)
)
@example(key=b"\xff" * 16, data=None, tweak=0)
@example(key=bytes(16), data=None, tweak=LAST)
@example(key=bytes(range(16)), data=None, tweak=2**32 - 8)
def test_twins(module, n, key, data, tweak):
    x = np.full((n, 2), FULL, np.uint64) if data is None else array(data.randbytes(16 * n))
    round_keys = module.expand_key(key_array(key))
    out = np.empty((n, 2), np.uint64)
    module.encrypt_blocks(round_keys, x, out)
    np.testing.assert_array_equal(out, encrypt_blocks(key, x))
    module.ctr_keystream(round_keys, tweak, out)
    np.testing.assert_array_equal(out, encrypt_blocks(key, counters(tweak, n)))
    module.tccr_hash(round_keys, x, tweak, out)
    np.testing.assert_array_equal(out, tccr_hash(key, x, tweak))


@both
@pytest.mark.parametrize("n", [1, 16, 33, 257])
def test_in_place(module, n):
    rng = np.random.default_rng()
    key = rng.bytes(16)
    round_keys = module.expand_key(key_array(key))
    x = rng.integers(0, FULL, (n, 2), np.uint64, endpoint=True)
    y = x.copy()
    module.encrypt_blocks(round_keys, y, y)
    np.testing.assert_array_equal(y, encrypt_blocks(key, x))
    y = x.copy()
    module.tccr_hash(round_keys, y, 9, y)
    np.testing.assert_array_equal(y, tccr_hash(key, x, 9))


@both
def test_writes_only_its_rows(module):
    out = np.zeros((100, 2), np.uint64)
    round_keys = module.expand_key(np.zeros(16, np.uint8))
    module.ctr_keystream(round_keys, 0, out[10:85])
    assert not out[:10].any()
    assert not out[85:].any()
    assert out[10:85].all()


@both
def test_wrong_shapes_are_refused(module):
    keys = module.expand_key(np.zeros(16, np.uint8))
    blocks = np.zeros((4, 2), np.uint64)
    with pytest.raises(ValueError, match="16 bytes"):
        module.expand_key(np.zeros(15, np.uint8))
    with pytest.raises(ValueError, match="differ in length"):
        module.encrypt_blocks(keys, blocks, blocks[:3])
    with pytest.raises(ValueError, match="differ in length"):
        module.tccr_hash(keys, blocks, 0, blocks[:3])
    with pytest.raises(ValueError, match="blocks are"):
        module.ctr_keystream(keys, 0, np.zeros((4, 1), np.uint64))
    with pytest.raises(ValueError, match="round keys are"):
        module.ctr_keystream(keys[:10], 0, blocks)
