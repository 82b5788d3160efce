"""What makes the tables of the paper: sweeps, comparison, report, benches. Not part of the wheel."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
