"""CoDyRA and the methods that it is compared with, one file each. Files in this folder are discovered automatically."""

import importlib
import pkgutil

from codyra_llm.methods.base import Method


def _find() -> dict[str, type[Method]]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Method) and value.name:
                found[value.name] = value
    return dict(sorted(found.items()))


METHODS = _find()

__all__ = ["METHODS", "Method"]
