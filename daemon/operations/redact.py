"""Taking out of texts what support has no business with. Too much is taken out rather than too little.

Names that are known (peers, models, data sets, hosts) become the same stand-in wherever they occur, and so do long
hexadecimal numbers, so that a session can still be followed through a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mpcd.daemon

# In this order: what an earlier one took out, a later one does not see.
_PATTERNS = (
    (re.compile(r"mpcd1:\S+"), "<invite>"),
    (re.compile(r"-----BEGIN.*?(-----END[^-]*-----|\Z)", re.DOTALL), "<key>"),
    (re.compile(r"'[^'\n]{1,500}'|\"[^\"\n]{1,500}\""), "<quoted>"),
    (re.compile(r"[^\s<>]+@[^\s<>]+"), "<address>"),
    (re.compile(r"(?:(?<=^)|(?<=[\s=(]))[A-Za-z]?:?[/\\][^,;:()<>\n]*"), "<path>"),
    # IPv6, but not a time of day.
    (
        re.compile(r"(?<!\w)\[?(?!\d\d:\d\d:\d\d\b)(?:[\da-fA-F]{0,4}:){2,}[\da-fA-F.]*(?:%\w+)?\]?(?::\d+)?"),
        "<address>",
    ),
    (re.compile(r"\b\d+(?:\.\d+){3,}(?::\d+)?\b"), "<number>"),  # UIDs and IPv4 addresses
    (re.compile(r"\b[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+:\d{2,5}\b"), "<address>"),
    (re.compile(r"\S*\^\S*"), "<name>"),
    (re.compile(r"\b[\w-]+\.(?:dcm|dicom|csv|tsv|png|jpe?g|safetensors|pt2?|onnx)\b", re.IGNORECASE), "<file>"),
)
_LATER = (
    (re.compile(r"(?=[A-Za-z_+/-]*[0-9A-Z])[A-Za-z0-9+/_-]{24,}={0,2}"), "<text>"),
    (re.compile(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b|\b[A-Z]{2,}, ?[A-Z]{2,}\b"), "<name>"),
    (re.compile(r"\b\d{6,}\b"), "<number>"),
)
_HEX = re.compile(r"\b(?:[0-9a-f]{4} ){3,}[0-9a-f]{4}\b|\b[0-9a-f]{12,}\b")  # as people compare it, or in one
_OURS = str(Path(mpcd.daemon.__path__[0]).parent)

# Log keys whose texts are ours, from the source.
_PLAIN = frozenset({"level", "timestamp", "part", "code", "stage", "state", "role", "method", "where"})
_NAMING = re.compile(r"name|fingerprint|address|path|file|folder|dataset|uid|patient|finding|host|commitment|digest")


class Redactor:
    """``known``: words and what stands for them."""

    def __init__(self, known: Mapping[str, str]) -> None:
        words = sorted((word for word in known if len(word) > 1), key=len, reverse=True)
        self._known = {word.lower(): known[word] for word in words}
        alternatives = "|".join(re.escape(word) for word in words)
        self._words = re.compile(rf"(?<![A-Za-z0-9])(?:{alternatives})(?![A-Za-z0-9])", re.IGNORECASE)
        self._numbers: dict[str, str] = {}

    def text(self, text: str) -> str:
        if self._known:
            text = self._words.sub(lambda found: self._known[found[0].lower()], text)
        for pattern, stand_in in _PATTERNS:
            text = pattern.sub(stand_in, text)
        text = _HEX.sub(self._number, text)
        for pattern, stand_in in _LATER:
            text = pattern.sub(stand_in, text)
        return text

    def _number(self, found: re.Match[str]) -> str:
        # By its beginning: the log shows some in full and some cut short.
        return self._numbers.setdefault(found[0].replace(" ", "")[:12], f"<id-{len(self._numbers) + 1}>")

    def value(self, value: Any) -> Any:
        """The same shape; every text in it redacted, keys that are not of our making too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value

    def event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """A line of the log."""
        return {key: self._entry(key, value) for key, value in event.items()}

    def _entry(self, key: str, value: Any) -> Any:
        if key in _PLAIN or value is None or isinstance(value, (bool, int, float)):
            return value
        if key == "exception" and isinstance(value, str):
            return self.traceback(value)
        if isinstance(value, str) and value.lower() in self._known:
            return self._known[value.lower()]
        return "<left out>" if _NAMING.search(key) else self.value(value)

    def traceback(self, text: str) -> str:
        """Our files, lines and functions; of other files their names, of errors their types."""
        lines = []
        for line in text.splitlines():
            if found := re.match(r'\s*File "([^"]+)", line (\d+), in (\S+)', line):
                file, number, function = found.groups()
                short = file.removeprefix(_OURS) if file.startswith(_OURS) else Path(file).name
                lines.append(f"  {short}:{number} {function}")
            elif found := re.match(r"[\s|+-]*([\w.]+)(: .*)?$", line):
                lines.append(found[1])
        return "\n".join(lines)


def stand_ins(kind: str, words: Iterable[str]) -> dict[str, str]:
    """``peer-1`` and so on, for names of one kind."""
    return {word: f"{kind}-{number}" for number, word in enumerate(dict.fromkeys(words), 1) if word}
