"""Checks and measurements on the current machine, for `codyra selfcheck`; parts.py lists them."""
