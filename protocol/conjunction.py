"""AND of XOR-shared bit vectors with bit triples (Beaver, CRYPTO 1991), two products with a common factor at a time.

Both parties hold shares of x, y and, for some of the x, y2; and of random a, b, b2, c = a & b, c2 = a & b2.

1. Both send their shares of d = x xor a, e = y xor b, e2 = y2 xor b2, and so learn d, e and e2.
2. Each sets its share of x & y to c xor (d & b) xor (e & a), P0 also xors d & e; likewise x & y2.

Cost, for m rows of W words of x and y, m2 <= m of y2: 2 m + m2 words from each party in one exchange.
Adversary: semi-honest; all that is sent is masked by a triple used once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import AndNeed, AndTriples, Source, take
from mpcd.protocol.wire import array, message

Rows = npt.NDArray[np.uint64]


def conjunction_needs(rows: int, words: int) -> tuple[AndNeed]:
    """One triple for every bit of the rows."""
    return (AndNeed(64 * words * rows),)


@message("conjunction.opened")
class Opened:
    """Step 1, both ways: shares of d, then e, then e2."""

    rows: Rows = array("uint64", 2)


def mask(x: Rows, y: Rows, y2: Rows, triples: AndTriples) -> Opened:
    """Step 1. x, y: uint64 (m, W). y2: uint64 (m2, W), the partners of the last m2 rows of x."""
    a, b, b2 = (v.reshape(x.shape) for v in (triples.a, triples.b, triples.b2))
    return Opened(np.concatenate([x ^ a, y ^ b, y2 ^ b2[len(x) - len(y2) :]]))


def combine(ours: Opened, theirs: Opened, triples: AndTriples, m: int, party: int) -> tuple[Rows, Rows]:
    """Step 2: shares of x & y, uint64 (m, W), and of x & y2, uint64 (m2, W)."""
    d, e, e2 = np.split(ours.rows ^ theirs.rows, [m, 2 * m])
    a, b, b2, c, c2 = (v.reshape(d.shape) for v in (triples.a, triples.b, triples.b2, triples.c, triples.c2))
    last = slice(m - len(e2), m)
    first = c ^ (d & b) ^ (e & a)
    second = c2[last] ^ (d[last] & b2[last]) ^ (e2 & a[last])
    if party == MODEL_OWNER:
        first ^= d & e
        second ^= d[last] & e2
    return first, second


async def conjunction(channel: Channel, source: Source, x: Rows, y: Rows, y2: Rows) -> tuple[Rows, Rows]:
    """Either party. Shares of x & y and, for the last rows of x, of x & y2."""
    (need,) = conjunction_needs(*x.shape)
    triples: AndTriples = await take(channel, source, need)
    ours = await channel.compute(mask, x, y, y2, triples)
    theirs = await channel.exchange(ours, rows=ours.rows.shape)
    return await channel.compute(combine, ours, theirs, triples, len(x), channel.party)
