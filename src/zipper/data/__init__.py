"""Encoded dataset to batches: encoding, task templates, collation, batch schedule, statistics."""
