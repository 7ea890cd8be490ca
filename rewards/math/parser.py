r"""From tokens to an expression: a small recursive-descent parser for school and olympiad mathematics.

A node is a tuple whose first item names it:

    ("n", Fraction) or ("n", Fraction, decimal places shown)  ("v", name)  ("i",)  ("e",)  ("pi",)  ("oo",)
    ("+", a, b) ("-", a, b) ("*", a, b) ("/", a, b) ("^", a, b) ("neg", a)
    ("root", degree, a)  ("abs", a)  ("!", a)  ("C", n, k)  ("fn", name, a)  ("log", base, a)
    ("call", name, arguments)  ("max", items)  ("min", items)  ("deg", a)  ("pm", a, b)  ("mp", a, b)
    ("mod", a, b) ("gcd", items) ("lcm", items) of constants  ("det", cells row by row)

Juxtaposition is a product, except that a whole number before a proper fraction is a mixed number, and that two
written numbers side by side are unreadable. Nothing is evaluated here.
"""

from __future__ import annotations

from fractions import Fraction

from rewards.math.cursor import Cursor
from rewards.math.nodes import balanced, letters_of
from rewards.math.numerals import based_value, fraction_of, is_number, plain_fraction, shown_places
from rewards.math.tokens import CLOSERS, MAX_DEPTH, Based, Foreign, Table, Unreadable, closes_at, split_top
from rewards.math.vocabulary import GREEK, NO_EXPRESSION, ONE_ARGUMENT

_LOGS = {"\\ln": ("e",), "\\log": None, "\\lg": ("n", Fraction(10))}
_CALLED = frozenset("fgh")
_OF_SEVERAL = frozenset(["\\max", "\\min", "\\gcd", "\\lcm"])
_TIMES = frozenset(["*", "\\cdot", "\\times", "\\ast"])
_OVER = frozenset(["/", "\\div", "\\over"])
_ENDS = CLOSERS | frozenset([",", ";", "=", "<", ">"])
_MAX_POSTFIX = 12
_MAX_BARS = 4
_MAX_SIZE = 8
_NO_FACTOR = frozenset(["\\pm", "\\mp", "\\mod", "\\cup", "\\cap", "\\in", "\\to"])
_GROUPS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_INVERSE = {"\\sin": "\\arcsin", "\\cos": "\\arccos", "\\tan": "\\arctan", "\\cot": "\\arccot"}


def parse(tokens: tuple) -> tuple:
    """The expression that tokens spell.

    Raises:
        Unreadable: they spell none.
    """
    reader = _Reader(tokens)
    node = reader.sum()
    if reader.at != len(reader.tokens):
        raise Unreadable(f"unexpected {reader.tokens[reader.at]!r}")
    return node


class _Reader(Cursor):
    def inner(self, tokens: tuple) -> tuple:
        reader = _Reader(tokens, self.nest)
        node = reader.sum()
        if reader.at != len(reader.tokens):
            raise Unreadable(f"unexpected {reader.tokens[reader.at]!r}")
        return node

    def sum(self) -> tuple:
        terms = [self.signed()]
        while True:
            token = self.peek()
            if token == "+" or token == "-":
                self.at += 1
                term = self.signed()
                terms.append(term if token == "+" else ("neg", term))
            elif token == "\\pm" or token == "\\mp":
                self.at += 1
                terms = [(token[1:], balanced("+", terms), self.signed())]
            elif token == "\\mod":
                self.at += 1
                terms = [self.remainder(terms, self.signed())]
            else:
                return balanced("+", terms)

    def signed(self) -> tuple:
        """A product with its signs: -2^2 is -(2^2), and 3 + -2 is allowed."""
        negative = False
        while (token := self.peek()) in ("+", "-"):
            negative ^= token == "-"
            self.at += 1
        if token in ("\\pm", "\\mp"):
            self.at += 1
            node = (token[1:], ("n", Fraction(0)), self.product())
        else:
            node = self.product()
        return ("neg", node) if negative else node

    def remainder(self, terms: list, modulus: tuple) -> tuple:
        """What is left of a constant; whether a sum is meant or only its last term, nobody can tell."""
        if len(terms) > 1 or letters_of(terms[0]) or letters_of(modulus):
            raise Foreign("the remainder of a sum, or of something unknown")
        return ("mod", terms[0], modulus)

    def product(self) -> tuple:
        first, over, under = self.at, [self.power()], []
        while True:
            token = self.peek()
            if token in _TIMES:
                self.at += 1
                over.append(self.factor())
            elif token in _OVER:
                self.at += 1
                under.append(self.factor())
            elif token is None or token in _ENDS or not self.starts(token):
                break
            else:
                mixed = self.juxtaposed(first, over[-1] if len(over) == 1 and not under else None)
                if mixed[0] == "mixed":
                    over = [mixed[1]]
                else:
                    over.append(mixed)
        node = balanced("*", over)
        return ("/", node, balanced("*", under)) if under else node

    def factor(self) -> tuple:
        if self.peek() in ("-", "+"):
            sign = self.take()
            node = self.power()
            return ("neg", node) if sign == "-" else node
        return self.power()

    def juxtaposed(self, first: int, before: tuple | None) -> tuple:
        """The next factor, no sign between; ("mixed", sum) when it makes a mixed number with the one before."""
        token = self.peek()
        number_before = before is not None and before[0] == "n" and self.at - first == 1
        if number_before and before[1].denominator == 1 and (token == "\\frac" or is_number(token)):
            at = self.at
            if token == "\\frac":
                right = self.power()
            else:
                right = self.atom()
                if self.peek() == "/":
                    self.at += 1
                    right = ("/", right, self.atom())
            part = plain_fraction(right)
            if part is not None and 0 < part < 1 and right[0] == "/":
                return ("mixed", ("+", before, right))
            if token != "\\frac" or part is not None:
                raise Unreadable("two numbers side by side")
            self.at = at
        elif is_number(token) and (number_before or self.tokens[self.at + 1 : self.at + 2] != ("^",)):
            raise Unreadable("a number after a factor")
        return self.power()

    def starts(self, token) -> bool:
        """Whether a token can begin a factor."""
        if token.__class__ is not str:
            return True
        return token[0] not in "\"+-^_'!%:&?@" and token not in _NO_FACTOR

    def power(self) -> tuple:
        node = self.atom()
        for _ in range(_MAX_POSTFIX):
            token = self.peek()
            if token == "^":
                self.at += 1
                if self.peek() == "\\circ":
                    self.at += 1
                    node = ("deg", node)
                    continue
                node = ("^", node, self.exponent())
            elif token == "!":
                self.at += 1
                node = ("!", node)
            elif token == "%":
                self.at += 1
                node = ("/", node, ("n", Fraction(100)))
            elif token == "_" and self.tokens[self.at - 1] == "]":
                raise Foreign("what stands between bounds")
            else:
                return node
        raise Unreadable("too many signs after a factor")

    def exponent(self) -> tuple:
        token = self.peek()
        if token == "{":
            return self.group()
        if token in ("-", "+"):
            self.at += 1
            node = self.exponent()
            return ("neg", node) if token == "-" else node
        if is_number(token) and self.at + 1 < len(self.tokens):
            self.at += 1
            return ("n", fraction_of(token))
        return self.atom()

    def group(self) -> tuple:
        """A bracketed expression, the bracket being next."""
        opener = self.peek()
        close = closes_at(self.tokens, self.at)
        if close < 0 or self.tokens[close] != _GROUPS.get(opener):
            raise Unreadable("brackets that do not match")
        node = self.inner(self.tokens[self.at + 1 : close])
        self.at = close + 1
        if opener == "\\lfloor" or opener == "\\lceil":
            return ("fn", "\\floor" if opener == "\\lfloor" else "\\ceil", node)
        if opener == "\\{":
            raise Unreadable("a set inside an expression")
        return node

    def argument(self) -> tuple:
        r"""The argument of a command: a group, or one token (``\frac12``, ``\sqrt x``)."""
        token = self.peek()
        if token == "{":
            return self.group()
        if token.__class__ is str and token.isdigit() and len(token) > 1:
            # \frac12 is 1 over 2: the command takes one digit and leaves the rest
            self.tokens = (*self.tokens[: self.at], token[0], token[1:], *self.tokens[self.at + 1 :])
        return self.atom()

    def atom(self) -> tuple:
        self.nest += 1
        if self.nest > MAX_DEPTH:
            raise Unreadable("nested too deep")
        node = self.bare_atom()
        self.nest -= 1
        return node

    def bare_atom(self) -> tuple:
        token = self.take()
        kind = token.__class__
        if kind is Fraction:
            return ("n", token)
        if kind is Based:
            return ("n", based_value(token))
        if kind is not str:
            if token.kind == "determinant":
                return self.determinant(token)
            raise Foreign("a table inside an expression")
        first = token[0]
        if first.isdigit() or first == ".":
            places = shown_places(token) if "." in token else None
            return ("n", Fraction(token)) if places is None else ("n", Fraction(token), places)
        if first == "(" or first == "[" or first == "{" or token in _GROUPS:
            self.at -= 1
            return self.group()
        if first == "|":
            return self.absolute()
        if first == "\\":
            return self.command(token)
        if first.isalpha():
            return self.letter(token)
        raise Unreadable(f"unexpected {token!r}")

    def absolute(self) -> tuple:
        """What stands between a bar and the first one behind it that closes something readable, as in ||x| - 1|."""
        if self.peek() == "_":
            raise Foreign("what stands between bounds")
        if self.peek().__class__ is Table and self.tokens[self.at + 1 : self.at + 2] == ("|",):
            self.at += 2
            return self.determinant(self.tokens[self.at - 2])
        depth, bars = 0, 0
        for index in range(self.at, len(self.tokens)):
            token = self.tokens[index]
            if token in _GROUPS:
                depth += 1
            elif token in CLOSERS:
                depth -= 1
            elif token == "|" and depth == 0:
                bars += 1
                if index == self.at:
                    continue
                try:
                    node = self.inner(self.tokens[self.at : index])
                except Unreadable:
                    if bars > _MAX_BARS:
                        raise
                    continue
                self.at = index + 1
                return ("abs", node)
        raise Unreadable("a bar that does not close")

    def determinant(self, table: Table) -> tuple:
        size = len(table.rows)
        if table.kind == "cases" or any(len(row) != size for row in table.rows):
            raise Unreadable("no square of cells")
        if size > _MAX_SIZE:
            raise Foreign("a large determinant")
        return ("det", tuple(self.inner(cell) for row in table.rows for cell in row))

    def letter(self, token: str) -> tuple:
        if token == "i" and self.peek() != "_":
            return ("i",)
        if token == "e" and self.peek() != "_":
            return ("e",)
        name = token + self.subscript()
        if token in _CALLED and self.peek() == "(":
            close = closes_at(self.tokens, self.at)
            if close > 0:
                parts = split_top(self.tokens[self.at + 1 : close], (",",))
                self.at = close + 1
                return ("call", name, tuple(self.inner(part) for part in parts))
        return ("v", name)

    def subscript(self) -> str:
        """Subscript and primes of a name, as text; in v^2_0 the exponent steps behind the subscript."""
        name = ""
        if self.peek() == "^":
            self.at, start = self.at + 1, self.at
            try:
                self.exponent()
                end = self.at
            except Unreadable:
                end = -1
            if end > 0 and self.peek() == "_":
                power = self.tokens[start:end]
                self.at += 1
                name = "_" + self.script()
                self.tokens = (*self.tokens[: self.at], *power, *self.tokens[self.at :])
                return name
            self.at = start
        while (token := self.peek()) in ("_", "'"):
            self.at += 1
            name += "'" if token == "'" else "_" + self.script()
        return name

    def command(self, token: str) -> tuple:
        if token == "\\frac":
            if self.tokens[self.at : self.at + 5] == ("{", "d", "}", "{", "d"):
                raise Foreign("a derivative")
            over = self.argument()
            return ("/", over, self.argument())
        if token == "\\sqrt":
            degree = ("n", Fraction(2))
            if self.peek() == "[":
                degree = self.group()
            return ("root", degree, self.argument())
        if token == "\\binom":
            chosen = self.argument()
            return ("C", chosen, self.argument())
        if token in ONE_ARGUMENT:
            return self.function(token)
        if token in _LOGS:
            base = _LOGS[token]
            if self.peek() == "_":
                self.at += 1
                base = self.argument()
            power = self.script_power()
            node = ("log", base, self.function_argument())
            return ("^", node, power) if power else node
        if token in _OF_SEVERAL:
            return self.of_several(token)
        if token == "\\det":
            return self.determinant(self.table())
        if token == "\\pi":
            return ("pi",)
        if token == "\\infty":
            return ("oo",)
        if token in GREEK:
            return ("v", token + self.subscript())
        if token in NO_EXPRESSION:
            raise Unreadable(f"{token} in an expression")
        raise Foreign(f"unknown command {token}")

    def of_several(self, token: str) -> tuple:
        close = closes_at(self.tokens, self.at) if self.peek() in _GROUPS else -1
        if close < 0:
            raise Unreadable(f"{token} of what?")
        items = tuple(self.inner(part) for part in split_top(self.tokens[self.at + 1 : close], (",",)))
        self.at = close + 1
        if token in ("\\gcd", "\\lcm") and any(map(letters_of, items)):
            raise Foreign("divisors of something unknown")
        return (token[1:], items)

    def table(self) -> Table:
        """The matrix that follows, in brackets or not."""
        at = self.at + (self.peek() in _GROUPS)
        table = self.tokens[at] if at < len(self.tokens) else None
        if table.__class__ is not Table or (at > self.at and closes_at(self.tokens, self.at) != at + 1):
            raise Foreign("the determinant of something unknown")
        self.at = at + 1 + (at > self.at)
        return table

    def script_power(self) -> tuple | None:
        if self.peek() != "^":
            return None
        self.at += 1
        return self.exponent()

    def function(self, name: str) -> tuple:
        power = self.script_power()
        if power == ("neg", ("n", Fraction(1))) and name in _INVERSE:
            return ("fn", _INVERSE[name], self.function_argument())
        node = ("fn", name, self.function_argument())
        return ("^", node, power) if power else node

    def function_argument(self) -> tuple:
        """What a function is applied to: a group, or the factors up to the next sign or function."""
        token = self.peek()
        if token is None:
            raise Unreadable("a function of nothing")
        if token in ("(", "{", "["):
            return self.group()
        if token == "-":
            self.at += 1
            return ("neg", self.function_argument())
        node = self.power()
        while (token := self.peek()) is not None and token not in _ENDS and self.starts(token):
            if token in _TIMES or token in _OVER or token in ONE_ARGUMENT or token in _LOGS or token in ("(", "["):
                if token == "/" and node[0] in ("n", "pi", "*") and self.at + 1 < len(self.tokens):
                    self.at += 1
                    node = ("/", node, self.power())
                    continue
                break
            node = ("*", node, self.power())
        return node
