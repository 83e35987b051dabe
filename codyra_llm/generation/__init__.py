"""Batched greedy generation: KV cache, prompt lookup, cached answers."""
