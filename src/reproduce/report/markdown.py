"""Markdown formatting for RESULTS.md."""


def section(title: str, text: str, rows: str, commands: list[str]) -> str:
    """Section with heading, text, table and commands that reproduce it."""
    shown = "\n".join(f"    {command}" for command in commands)
    return "\n".join([f"## {title}\n", f"{text}\n", rows, *([shown + "\n"] if shown else [])])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(share: float, digits: int = 1) -> str:
    """Formats a share as percent: 0.0423 -> 4.2 %."""
    return f"{100 * share:.{digits}f} %"
