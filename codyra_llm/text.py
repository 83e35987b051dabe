"""Text for the console: tables, and values and lines of bounded length."""

import base64
import json
import re
import reprlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

SHOWN = 200  # characters of a value in an error
LINE = 1500  # characters of an error
HIDDEN = "***"
SECRET_PARAMETER = re.compile("key|token|secret|passw|sig", re.IGNORECASE)  # of a URL, by its name

_bounded = reprlib.Repr()
_bounded.maxlevel, _bounded.maxstring, _bounded.maxother, _bounded.maxlong = 3, 120, 120, 60


def align(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as text: first column left-aligned, others right-aligned, as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(line.rstrip() for line in lines)


def shown(value: Any) -> str:
    """Returns a user's value for an error message: its repr, limited to `SHOWN` characters while it is built."""
    try:
        text = _bounded.repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def one_line(text: str) -> str:
    """Returns text as one printable line of at most `LINE` characters, with control characters escaped."""
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text[: LINE + 1]
    )
    return escaped if len(escaped) <= LINE else f"{escaped[: LINE - 3]}..."


def scrub(text: str, secret: str | None = None) -> str:
    """Returns text without secrets: `secret` in any of its encodings, and the credentials in URLs.

    In URLs, user name and password are hidden, and the values of parameters whose names suggest keys.
    """
    if secret:
        spellings = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        spellings.add(base64.b64encode(secret.encode()).decode().rstrip("="))
        for spelling in sorted(spellings, key=len, reverse=True):
            text = text.replace(spelling, HIDDEN)
    text = re.sub(r"\b(\w+://)[^/\s?#@]*(?:@[^/\s?#@]*)*@", rf"\1{HIDDEN}@", text)
    return re.sub(r"([?&])([\w-]+)=([^&\s#]+)", _hide_parameter, text)


def _hide_parameter(parameter: re.Match[str]) -> str:
    mark, name, _ = parameter.groups()
    return f"{mark}{name}={HIDDEN}" if SECRET_PARAMETER.search(name) else parameter[0]
