"""Reproduction of the paper's tables: sweeps, comparison, report, benchmarks. Not part of the wheel."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # root of the checkout
