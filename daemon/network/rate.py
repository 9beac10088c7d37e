"""How many a second."""

from __future__ import annotations


class Rate:
    """A bucket of tokens: ``a_second`` flow in, up to ``at_once``; an event takes some."""

    __slots__ = ("_a_second", "_at_once", "_filled", "_tokens")

    def __init__(self, a_second: float, at_once: float, now: float) -> None:
        self._a_second, self._at_once = a_second, at_once
        self._tokens, self._filled = at_once, now

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Whether there were enough; they are gone then."""
        if self.wait(now, tokens) > 0:
            return False
        self._tokens -= tokens
        return True

    def give_back(self, tokens: float = 1.0) -> None:
        self._tokens = min(self._at_once, self._tokens + tokens)

    def wait(self, now: float, tokens: float = 1.0) -> float:
        """Seconds until there are enough."""
        self._tokens = min(self._at_once, self._tokens + max(0.0, now - self._filled) * self._a_second)
        self._filled = now
        return max(0.0, (tokens - self._tokens) / self._a_second)
