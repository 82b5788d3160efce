"""RESULTS.md and its figures, made from result files."""
