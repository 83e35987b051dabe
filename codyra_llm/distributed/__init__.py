"""Ranks: rendezvous, communication, and coordinated stops."""
