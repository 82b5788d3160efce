"""Evaluation: ids to word error rate, and the result file that RESULTS.md is made from."""
