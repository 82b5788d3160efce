"""Section on fault tolerance, from results/{faults,bad-input,saving}.json."""

from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import Result


def safety(found: dict[str, Result]) -> str:
    """Faults, bad input, and overhead. found: results by file name; empty without fault results."""
    campaign = found.get("faults")
    if campaign is None:
        return ""
    rows = [
        [
            one["command"],
            one["fault"],
            *(str(one[key]) for key in ("times", "recovered", "identical", "lost")),
            ", ".join(f"{code} x {count}" for code, count in sorted(one["codes"].items())),
        ]
        for one in campaign["faults"]
    ]
    total = [f"**{campaign[key]}**" for key in ("times", "recovered", "identical", "lost")]
    rows.append(["**all**", "", *total, ""])
    text = (
        "Small real runs (mixture of both tasks, dropout, accumulation, a worker process; "
        f"{campaign['config']['train']['steps']} steps) are hit at random moments, up to three times each, "
        "and the same command is given again. *Recovered*: it ended well. *Identical*: weights of the last "
        "and the best checkpoint, optimiser, schedule, every logged metric and the result files are those of "
        "the unbroken run, and of a store every byte. *Lost*: a checkpoint that was there before is gone or "
        f"broken. {campaign['minutes']} minutes, {campaign['jobs']} runs at a time (`{campaign['commit']}`). "
        "Negative exit codes: killed by that signal."
    )
    commands = [campaign["command"]]
    if clear := found.get("bad-input"):
        entries = ", ".join(f"{name} {count}" for name, count in sorted(clear["by_command"].items()))
        text += (
            f"\n\nBad input: {clear['clear']} of {clear['cases']} cases over every command ({entries}) end "
            "in an error of the expected type, which names the thing, its value and the fix, before work "
            f"starts (`{clear['commit']}`)."
        )
        commands.append(clear["command"])
    if saving := found.get("saving"):
        text += (
            f"\n\nWhat it costs: with a checkpoint every {saving['save_every']} steps, every step checked "
            f"and signals listened to, training runs at {percent(saving['figures']['ratio'])} of the speed "
            f"that it has without ({saving['figures']['exact']:.2f} against {saving['figures']['bare']:.2f} "
            f"steps/s, blocks of one training that took turns, {saving['threads']} threads, "
            f"`{saving['commit']}`)."
        )
        commands.append(saving["command"])
    head = ["command", "fault", "times", "recovered", "identical", "lost", "exit codes"]
    return section("Fault tolerance", text, table(head, rows), commands)
