"""Time and peak memory of a command: `python -m reproduce.bench.memory OUT.json NAME COMMAND ...`

Memory is the sum of PSS (proportional set size) over the process tree, which counts shared pages once.
Linux only.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from zipper.commit import commit
from zipper.evaluation.result_file import read_result, write_result

EVERY = 0.5  # seconds


def pss_of_tree(root: int | None = None) -> int:
    """PSS in bytes of a process (default: this one) and its descendants."""
    total, todo = 0, [root or os.getpid()]
    while todo:
        process = Path("/proc") / str(todo.pop())
        for children in process.glob("task/*/children"):
            todo += map(int, _text(children).split())
        lines = _text(process / "smaps_rollup").splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:  # the process has exited
        return ""


def watch(command: list[str]) -> dict[str, float | int | str]:
    """Runs a command and measures it. Raises CalledProcessError if it fails."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, pss_of_tree(process.pid))
        time.sleep(EVERY)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"seconds": round(time.monotonic() - started, 1), "peak_pss_mb": round(peak / 1e6)}


def main() -> None:
    """Runs a command and adds its measurements to OUT.json under NAME."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    file, name, command = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3:]
    measured = watch(command)
    known = read_result(file, utterances=False) if file.exists() else {}
    mine = {**measured, "command": " ".join(command), "cores": os.cpu_count(), "commit": commit()}
    write_result({**known, name: mine}, file)
    print(f"{name}: {measured['seconds']} s, peak {measured['peak_pss_mb']} MB -> {file}")


if __name__ == "__main__":
    main()
