"""What can be proved and timed on the machine at hand: `codyra selfcheck`. parts.py lists it."""
