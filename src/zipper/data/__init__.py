"""Rows of a store to batches: task templates, collation, and the order of training."""
