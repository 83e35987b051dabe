"""Ranks: how they find each other, talk to each other, and stop together."""
