"""From tokens to text as it is written: whole characters only, and cut where a stop string begins.

Works on bytes, so that characters and stop strings may lie across tokens as they like. Knows no model.
"""

import codecs
from collections.abc import Sequence


class Text:
    """The text of one answer, token by token.

    Attributes:
        text: what was written so far, in whole characters; cut before the stop string once one has come.
        stopped: whether one has.
    """

    def __init__(self, pieces: Sequence[bytes], stop: Sequence[str] = (), min_new: int = 0) -> None:
        """Begin empty.

        Args:
            pieces: the bytes of each id; b"" for those that are not to be seen.
            stop: texts that end it.
            min_new: stop strings that end within so many tokens are not heard.
        """
        self.pieces, self.stop, self.min_new = pieces, tuple(stop), min_new
        self.text, self.stopped = "", False
        self._made, self._shown = 0, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> bool:
        """Take a token; whether a stop string is now complete."""
        before = len(self.text)
        self._made += 1
        self.text += self._decoder.decode(self.pieces[token] if token < len(self.pieces) else b"")
        if self._made > self.min_new:
            self._cut(before)
        return self.stopped

    def close(self) -> str:
        """The whole text; a character of which bytes are missing becomes U+FFFD."""
        if not self.stopped:
            self.text += self._decoder.decode(b"", True)
        return self.text

    def _cut(self, before: int) -> None:
        found = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self.stop]
        places = [place for place in found if place >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def ready(self, whole: bool = False) -> str:
        """What can be shown since the last call: all but an end that may yet become a stop string (`whole`: all)."""
        end = len(self.text) if whole or self.stopped else len(self.text) - self._held_back()
        piece = self.text[self._shown : max(end, self._shown)]
        self._shown += len(piece)
        return piece

    def _held_back(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self.stop):
                return length
        return 0
