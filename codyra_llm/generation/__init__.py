"""Batched greedy generation: KV cache, prompt lookup, kept answers."""
