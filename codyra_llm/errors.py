"""What bad input raises: one line that names what is wrong, where, and what would be right."""


class UserError(Exception):
    """A mistake in what the user gave (config, data, paths). Commands print it and exit with status 2."""
