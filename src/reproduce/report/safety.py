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
        "Faults are injected at random moments into small real runs, up to three per run (both tasks, "
        f"dropout, gradient accumulation, a worker process; {campaign['config']['train']['steps']} steps), "
        "and the same command is run again. *Recovered*: it succeeds. *Identical*: weights of the last and "
        "the best checkpoint, optimiser, schedule, all logged metrics and the result files equal those of "
        "the uninterrupted run; for an encoded dataset, every byte does. *Lost*: an existing checkpoint "
        f"disappears or is damaged. {campaign['minutes']} minutes, {campaign['jobs']} parallel runs "
        f"(`{campaign['commit']}`). A negative exit code is the signal that killed the process."
    )
    commands = [campaign["command"]]
    if clear := found.get("bad-input"):
        entries = ", ".join(f"{name} {count}" for name, count in sorted(clear["by_command"].items()))
        text += (
            f"\n\nBad input: {clear['clear']} of {clear['cases']} cases over all commands ({entries}) raise "
            "an error of the expected type, which names the key, its value and the fix, before any work "
            f"(`{clear['commit']}`)."
        )
        commands.append(clear["command"])
    if saving := found.get("saving"):
        text += (
            f"\n\nOverhead: with a checkpoint every {saving['save_every']} steps, a check of every step, and "
            f"signal handling, training runs at {percent(saving['figures']['ratio'])} of its speed without "
            f"them ({saving['figures']['exact']:.2f} against {saving['figures']['bare']:.2f} steps/s, "
            f"alternating blocks of one training, {saving['threads']} threads, `{saving['commit']}`)."
        )
        commands.append(saving["command"])
    head = ["command", "fault", "times", "recovered", "identical", "lost", "exit codes"]
    return section("Fault tolerance", text, table(head, rows), commands)
