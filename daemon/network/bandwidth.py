"""``[limits] bandwidth_mbit_s``: what all data connections of this daemon together may send, and may receive, a second.

Control links are not counted: their few bytes go out at once, so that a full bucket never looks like a dead peer.
"""

from __future__ import annotations

BURST = 0.1  # seconds' worth that may go at once
LEAST_PIECE = 16 * 1024


class Bucket:
    """One direction. A piece is booked when it is about to go, and goes when all booked before it had its time."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free = 0.0  # when everything that is booked will have gone

    def book(self, size: int, now: float) -> float:
        """Seconds to wait before (sending) or after (receiving) these bytes."""
        self._free = max(self._free, now - BURST) + size / self._rate
        return max(0.0, self._free - size / self._rate - now)

    def debt(self, now: float) -> float:
        """Seconds until everything that is booked has gone."""
        return max(0.0, self._free - now)


class Bandwidth:
    """Both directions, and the size of the pieces in which connections take their turns."""

    def __init__(self, mbit_per_second: float) -> None:
        rate = mbit_per_second * 1e6 / 8
        self.sending, self.receiving = Bucket(rate), Bucket(rate)
        self.piece = max(LEAST_PIECE, int(rate * BURST))
