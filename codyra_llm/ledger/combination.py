"""How the entries of a ledger are combined into one update: by summing, or as the method that wrote them specifies."""

import dataclasses
from functools import partial
from typing import Any

from codyra_llm.config import RunConfig
from codyra_llm.errors import UserError
from codyra_llm.files import validated
from codyra_llm.ledger.entry import Combine
from codyra_llm.methods import METHODS
from codyra_llm.text import shown


def describe_combination(config: RunConfig) -> dict[str, Any]:
    """Returns the data of ledger.json on how entries are combined: method and settings; empty if they are summed."""
    method = METHODS[config.method](config)
    return {} if method.sums() else {"method": method.name, "settings": dataclasses.asdict(method.settings)}


def combination(described: dict[str, Any], where: str) -> Combine | None:
    """Returns the function for a result of `describe_combination`; None: entries are summed.

    Raises:
        UserError: the method is unknown, or has other settings.
    """
    if not described:
        return None
    name = described.get("method")
    method = METHODS.get(name) if isinstance(name, str) else None
    if not method or method.sums():
        raise UserError(f"{where}: its entries are combined by method {shown(name)}, which is not installed")
    settings: Any = validated(method.Settings, described.get("settings", {}), where, f"not settings of {name}")
    return partial(method.combine, settings)
