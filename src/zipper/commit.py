"""Commit of the running code. Uses the standard library only, so it works before installation."""

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Short hash of the checked-out commit.

    Ends in `-dirty` if files other than results differ from it; `unknown` outside a checkout.
    """
    if not (CHECKOUT / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(CHECKOUT)]
    generated = [f":(top,exclude){name}" for name in ("results", "reports", "RESULTS.md")]
    try:
        name = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], encoding="utf-8").strip()
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/", *generated]).returncode == 0
        return name if clean else f"{name}-dirty"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
