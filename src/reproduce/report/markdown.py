"""Pieces of RESULTS.md."""


def section(title: str, text: str, rows: str, commands: list[str]) -> str:
    """A heading, a sentence, a table, and the commands that made it."""
    made = "\n".join(f"    {command}" for command in commands)
    return "\n".join([f"## {title}\n", f"{text}\n", rows, *([made + "\n"] if made else [])])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(share: float, digits: int = 1) -> str:
    """0.0423 -> 4.2 %"""
    return f"{100 * share:.{digits}f} %"
