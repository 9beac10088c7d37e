"""128 base oblivious transfers in each direction, in one message each way.

Masny and Rindal, "Endemic Oblivious Transfer" (CCS 2019, eprint 2019/706), figure 8, with Diffie-Hellman as the key
agreement. Chosen over Chou and Orlandi's "simplest OT" because its two messages do not depend on each other: both
directions take one round together.

Group: the prime-order subgroup of edwards25519 (libsodium), generator G, written additively. H_{i,s} hashes a point
to the group: the sum of two Elligator images of SHA-512 halves (indifferentiable, Farashahi et al., eprint
2010/539), which nobody knows the discrete logarithm of. i is the OT's index, s the slot, and the session id and the
direction are hashed too.

Sender ends with keys (k_0, k_1), Receiver with a random bit c and k_c, per OT.

1. Sender draws a scalar a and sends A = a G (one for all 128).
2. Receiver draws c and scalars b, d; sets R_{1-c} = d G and R_c = b G - H_{i,c}(R_{1-c}); sends (R_0, R_1).
3. Sender: k_s = KDF(a (R_s + H_{i,s}(R_{1-s}))).
4. Receiver: k_c = KDF(b A).

KDF is SHA-256, cut to 128 bits, of a label, the session id, both parties' whole messages, the direction, i, s and
the point. Each party is Sender of one direction and Receiver of the other, and sends both messages as one.

Cost: 32 + 2 * 32 * 128 = 8224 bytes each way, 2 flows (one each way, neither waits for the other).

Adversary: malicious, either party ("endemic": a party may choose what its own keys are, and learns no other);
computational Diffie-Hellman in edwards25519 (about 2^126 group operations) and the random oracle. (R_0, R_1) is uniform
whatever c is, so the Receiver's bit is hidden unconditionally. A received point that is not canonical, not on the
curve, not of the prime order or neutral is refused: it could bring the KDF's input into a small subgroup.
"""

from __future__ import annotations

import dataclasses
import hashlib

import nacl.exceptions
import numpy as np
import numpy.typing as npt
from nacl import bindings as sodium

from mpcd.protocol.channel import Channel
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError, array, blob, message

COUNT = 128
BYTES_SENT = 32 + 2 * 32 * COUNT  # by each party
_POINTS = (COUNT, 2, 32)

Bytes = npt.NDArray[np.uint8]


@message("base-ot")
class BaseMessage:
    """Steps 1 and 2: A of the direction that this party sends in, and (R_0, R_1) of the other."""

    sender_point: bytes = blob(32)
    points: Bytes = array("uint8", 3)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class BaseOts:
    """One party's outcome.

    uint8 arrays: ``sender_keys`` (128, 2, 16); ``choices`` (128,), 0 or 1, and their ``chosen_keys`` (128, 16).
    ``session_key``: 16 bytes that both parties share, from the session id and both messages. Public, never reused.
    """

    sender_keys: Bytes
    choices: Bytes
    chosen_keys: Bytes
    session_key: bytes


class Sender:
    """Steps 1 and 3. ``direction`` is the sending party's number."""

    def __init__(self, session: bytes, direction: int, prg: Prg) -> None:
        self._context = _context(session, direction)
        self._scalar = _scalar(prg)
        self.point = sodium.crypto_scalarmult_ed25519_base_noclamp(self._scalar)

    def keys(self, points: Bytes, transcript: bytes) -> Bytes:
        """Step 3, from the Receiver's points: uint8 (128, 2, 16). Raises WireError for a bad point."""
        keys = np.empty((COUNT, 2, 16), np.uint8)
        for i in range(COUNT):
            pair = [points[i, s].tobytes() for s in (0, 1)]
            _check_point(pair[0])
            _check_point(pair[1])
            for s in (0, 1):
                blinded = sodium.crypto_core_ed25519_add(pair[s], _hash_to_group(self._context, i, s, pair[1 - s]))
                shared = _multiply(self._scalar, blinded)
                keys[i, s] = _kdf(self._context, transcript, i, s, shared)
        return keys


class Receiver:
    """Steps 2 and 4. ``direction`` is the peer's number; ``choices`` uint8 (128,) of 0 or 1."""

    def __init__(self, session: bytes, direction: int, prg: Prg) -> None:
        self._context = _context(session, direction)
        self.choices = np.unpackbits(np.frombuffer(prg.octets(COUNT // 8), np.uint8), bitorder="little")
        self._scalars = []
        self.points = np.empty(_POINTS, np.uint8)
        masks = np.negative(self.choices)
        for i in range(COUNT):
            c = int(self.choices[i])
            b, d = _scalar(prg), _scalar(prg)
            other = sodium.crypto_scalarmult_ed25519_base_noclamp(d)
            own = sodium.crypto_core_ed25519_sub(
                sodium.crypto_scalarmult_ed25519_base_noclamp(b), _hash_to_group(self._context, i, c, other)
            )
            self._scalars.append(b)
            # R_0 and R_1 are placed by mask: the choice selects no address.
            own_bytes, other_bytes = np.frombuffer(own, np.uint8), np.frombuffer(other, np.uint8)
            difference = (own_bytes ^ other_bytes) & masks[i]
            self.points[i, 0] = own_bytes ^ difference
            self.points[i, 1] = other_bytes ^ difference

    def keys(self, sender_point: bytes, transcript: bytes) -> Bytes:
        """Step 4, from the Sender's A: uint8 (128, 16). Raises WireError for a bad point."""
        _check_point(sender_point)
        keys = np.empty((COUNT, 16), np.uint8)
        for i, b in enumerate(self._scalars):
            keys[i] = _kdf(self._context, transcript, i, int(self.choices[i]), _multiply(b, sender_point))
        return keys


async def base_ots(channel: Channel) -> BaseOts:
    """Both directions at once; the same at both parties."""
    sender = await channel.compute(Sender, channel.session, channel.party, channel.prg)
    receiver = await channel.compute(Receiver, channel.session, 1 - channel.party, channel.prg)
    ours = BaseMessage(sender.point, receiver.points)
    theirs = await channel.exchange(ours, points=_POINTS)
    transcript = _transcript(channel, ours, theirs)
    sender_keys = await channel.compute(sender.keys, theirs.points, transcript)
    chosen_keys = await channel.compute(receiver.keys, theirs.sender_point, transcript)
    session_key = hashlib.sha256(b"mpcd/ot/session-key/1" + channel.session + transcript).digest()[:16]
    return BaseOts(sender_keys, receiver.choices, chosen_keys, session_key)


def _transcript(channel: Channel, ours: BaseMessage, theirs: BaseMessage) -> bytes:
    """SHA-256 of P0's message and P1's, in this order at both."""
    digest = hashlib.sha256(b"mpcd/ot/base/transcript/1" + channel.session)
    for msg in (ours, theirs) if channel.party == 0 else (theirs, ours):
        digest.update(msg.sender_point + msg.points.tobytes())
    return digest.digest()


def _context(session: bytes, direction: int) -> bytes:
    return session + bytes([direction])


def _scalar(prg: Prg) -> bytes:
    """Uniform mod the group's order: 512 bits reduced, so within 2^-259 of uniform."""
    scalar: bytes = sodium.crypto_core_ed25519_scalar_reduce(prg.octets(64))
    return scalar


def _hash_to_group(context: bytes, index: int, slot: int, point: bytes) -> bytes:
    digest = hashlib.sha512(b"mpcd/ot/base/hash-to-group/1" + context + bytes([index, slot]) + point).digest()
    image: bytes = sodium.crypto_core_ed25519_add(
        sodium.crypto_core_ed25519_from_uniform(digest[:32]), sodium.crypto_core_ed25519_from_uniform(digest[32:])
    )
    return image


def _kdf(context: bytes, transcript: bytes, index: int, slot: int, shared: bytes) -> Bytes:
    label = b"mpcd/ot/base/kdf/1"
    digest = hashlib.sha256(label + context + transcript + bytes([index, slot]) + shared).digest()
    return np.frombuffer(digest[:16], np.uint8)


def _check_point(point: bytes) -> None:
    if not sodium.crypto_core_ed25519_is_valid_point(point):
        raise WireError("a base OT point is not a valid element of the group")


def _multiply(scalar: bytes, point: bytes) -> bytes:
    """scalar * point; libsodium refuses the neutral element, which no honest message leads to."""
    try:
        product: bytes = sodium.crypto_scalarmult_ed25519_noclamp(scalar, point)
    except nacl.exceptions.RuntimeError as error:
        raise WireError("a base OT point leads to the neutral element") from error
    return product
