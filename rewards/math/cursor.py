"""Where in its tokens a reader is."""

from __future__ import annotations

from rewards.math.tokens import MAX_DEPTH, Unreadable, closes_at


class Cursor:
    """tokens; at: index of the next one; nest: how deep in brackets they stand.

    Raises:
        Unreadable: they stand too deep.
    """

    def __init__(self, tokens: tuple, depth: int = 0):
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        self.tokens, self.at, self.nest = tokens, 0, depth

    def peek(self):
        """The next token, None behind the last."""
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, expected=None):
        """The next token, which is then behind.

        Raises:
            Unreadable: there is none, or another than expected.
        """
        token = self.peek()
        if token is None or (expected is not None and token != expected):
            raise Unreadable(f"expected {expected or 'more'}")
        self.at += 1
        return token

    def script(self) -> str:
        """A subscript's content as text: a token, or what stands in braces."""
        if self.peek() == "{":
            close = closes_at(self.tokens, self.at)
            if close < 0:
                raise Unreadable("a subscript that does not close")
            text = "".join(str(token).strip('"') for token in self.tokens[self.at + 1 : close])
            self.at = close + 1
            return text
        return str(self.take()).strip('"')
