"""Renders pages from a template and values; every value is escaped unless it is known to be markup."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from codyra_llm.report.tables import with_interval
from codyra_llm.results.comparison import Estimate

HERE = Path(__file__).parent
REFRESH_SECONDS = 20
NOTHING = "–"  # shown for a number that was not measured


def render(template: str, title: str, pictures: Mapping[str, str], refresh: bool = False, **values: Any) -> str:
    """Returns the HTML of a page.

    Args:
        template: a file in the folder of this module.
        title: of the page.
        pictures: SVG elements by name, which are not escaped.
        refresh: whether the page reloads itself every `REFRESH_SECONDS`.
        values: further values for the template.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "value": value, "interval": interval, "clip": clip}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        title=title,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        refresh=REFRESH_SECONDS if refresh else None,
        pictures={name: Markup(text) for name, text in pictures.items()},
        **values,
    )


def number(given: float | None, decimals: int = 1) -> str:
    """Returns a number as text, without trailing zeros; a dash for None and NaN."""
    if given is None or given != given:
        return NOTHING
    text = f"{given:,.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text.replace("-", "−")


def value(found: Estimate | None) -> str:
    """Returns the value of an estimate as text; a dash for None."""
    return number(found.value if found else None)


def interval(found: Estimate | None, signed: bool = False) -> str:
    """Returns an estimate with its interval as text; a dash for None."""
    return with_interval(found, signed).replace("-", "−") or NOTHING


def clip(text: str, longest: int = 300) -> str:
    """Returns a text with its middle left out if it is longer than `longest` characters."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} […] {text[-half:]}"
