"""Strategies for inputs: values of every kind, and valid documents with parts replaced, removed or added."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

HOSTILE = [
    "",
    ".",
    "..",
    "../../outside",
    "/etc/passwd",
    "~nobody-here/x",
    "a/b",
    "a\\b",
    "nul\0inside",
    "n" * 300,
    "\x1b[31mred",
    "two\nlines",
    "\u2028",
    "²",
    "\ud800",
    "${HOME}",
    "1e400",
    "null",
    "!!python/object:os.system",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.0, 1e-320, 1e39, 1e300, float("inf"), float("nan")]

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(HOSTILE)
    | st.integers(-10, 10)
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every value in a document of mappings and lists, including the document itself."""
    found = [path]
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """Draws a document with one to three of its values replaced, removed or copied (in a mapping, to a new key)."""
    content = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(content)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(values)
            continue
        *above, last = path
        parent = content
        for key in above:
            parent = parent[key]
        act = draw(st.sampled_from(["replace", "replace", "take away", "add"]))
        if act == "replace":
            parent[last] = draw(values)
        elif act == "take away":
            del parent[last]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[draw(st.sampled_from(HOSTILE) | st.text(max_size=6))] = copy.deepcopy(parent[last])
    return content


@st.composite
def files_like(draw: st.DrawFn, document: Any) -> bytes:
    """Draws the bytes of a JSON file: mostly a damaged document; sometimes truncated, spliced or arbitrary bytes."""
    text = json.dumps(draw(damaged(document)))
    content = text.encode()
    act = draw(st.sampled_from(["whole"] * 6 + ["cut", "spliced", "doubled key", "deep", "anything"]))
    if act == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if act == "spliced":
        at = draw(st.integers(0, len(content)))
        return content[:at] + draw(st.binary(max_size=6)) + content[at:]
    if act == "doubled key":
        at = text.find('"')
        return content if at < 0 else f"{text[:at]}{text[at:].split(':')[0]}: 1, {text[at:]}".encode()
    if act == "deep":
        return b"[" * 2000 + b"]" * 2000
    return draw(st.binary(max_size=40)) if act == "anything" else content
