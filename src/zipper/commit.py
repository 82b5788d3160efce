"""Which code ran. Standard library alone, so that it can be asked before anything is installed."""

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Of the checkout; `-dirty` where files differ from it (results aside), `unknown` outside of it."""
    if not (CHECKOUT / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(CHECKOUT)]
    made = [
        ":(top,exclude)results",
        ":(top,exclude)reports",
        ":(top,exclude)RESULTS.md",
    ]  # by the runs themselves
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
        ).stdout.strip()
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/", *made]).returncode == 0
        return name if clean else f"{name}-dirty"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
