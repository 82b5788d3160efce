"""Cached, batched generation: prompts and an order of output modalities to segments of tokens."""
