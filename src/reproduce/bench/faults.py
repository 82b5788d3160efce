"""`zipper faults`: injects faults into small real runs at random moments and resumes them.

The final files are compared bit for bit with those of an uninterrupted run.
"""

import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reproduce.bench.processes import Process, contents
from reproduce.bench.record import record, show
from zipper.checkpoint_files import find_damage, read_checkpoint
from zipper.commit import commit
from zipper.config import RunConfig
from zipper.stop import INTERRUPTED, UNFINISHED

TIMEOUT = 120.0  # seconds until a process must have exited
CHAIN = 3  # maximum faults in one run
COUNTED = ("times", "recovered", "identical", "lost")
SMALL = 40_000  # bytes: more than a result file, less than a checkpoint


@dataclass(frozen=True)
class Fault:
    """Fault of a running command. codes: expected exit codes if the fault does not kill it."""

    name: str
    command: str = "train"  # train, prepare, or evaluate
    number: int = signal.SIGKILL
    twice: bool = False
    then: str = ""  # damage to a file afterwards: cut, or flip (a bit)
    of: str = ""  # files to damage: glob pattern in the build folder
    limit: str = ""  # instead of a signal: disk (full), or folder (read-only)
    codes: tuple[int, ...] = ()


FAULTS = [
    Fault("SIGKILL"),
    Fault("SIGTERM", number=signal.SIGTERM, codes=(UNFINISHED,)),
    Fault("SIGUSR1", number=signal.SIGUSR1, codes=(UNFINISHED,)),
    Fault("Ctrl-C", number=signal.SIGINT, codes=(INTERRUPTED,)),
    Fault("Ctrl-C twice", number=signal.SIGINT, twice=True, codes=(INTERRUPTED,)),
    Fault("full disk", limit="disk", codes=(2,)),
    Fault("read-only folder", limit="folder", codes=(2,)),
    Fault("SIGKILL, a checkpoint cut off", then="cut", of="runs/*/checkpoints/*.ckpt"),
    Fault("SIGKILL, a bit of a checkpoint flipped", then="flip", of="runs/*/checkpoints/*.ckpt"),
    Fault("SIGKILL, a shard of the store cut off", then="cut", of="stores/*/*.arrow"),
    Fault("SIGKILL", "prepare"),
    Fault("SIGTERM", "prepare", signal.SIGTERM, codes=(UNFINISHED,)),
    Fault("full disk", "prepare", limit="disk", codes=(2,)),
    Fault("SIGKILL, a shard cut off", "prepare", then="cut", of="stores/*/*.arrow"),
    Fault("SIGKILL", "evaluate"),
    Fault("SIGTERM", "evaluate", signal.SIGTERM, codes=(UNFINISHED,)),
    Fault("full disk", "evaluate", limit="disk", codes=(2,)),
]


@dataclass
class Tally:
    """Counts of one fault.

    times: injections. recovered: the same command, run again, succeeded. identical: all files equal those of
    the uninterrupted run. lost: an existing checkpoint disappeared or was damaged.
    """

    fault: str
    command: str
    times: int = 0
    recovered: int = 0
    identical: int = 0
    lost: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)  # descriptions of failures


def faults(cfg: RunConfig, config: Path, times: int, jobs: int, command: str) -> dict[str, Any]:
    """Injects `times` faults, with `jobs` parallel runs; prints the table and writes cfg.result.

    Keeps the folder of a run that did not recover in build/faults/.
    """
    root, started, code = Path(cfg.build).resolve() / "faults", time.monotonic(), commit()
    shutil.rmtree(root, ignore_errors=True)
    campaign = Campaign(config, root, cfg.seed)
    campaign.make_unbroken()
    tallies = campaign.run(times, jobs)
    total = {key: sum(getattr(one, key) for one in tallies) for key in COUNTED}
    result = record(cfg, "faults", command, code, {
        **total, "faults": [asdict(one) for one in tallies],
        "minutes": round((time.monotonic() - started) / 60, 1), "jobs": jobs,
        "data_fingerprint": next((root / "unbroken-prepare" / "stores").iterdir()).name,
        "unbroken_seconds": {name: round(seconds, 1) for name, seconds in campaign.seconds.items()},
    })  # fmt: skip
    show(cfg, "safety")
    print("\n".join(problem for one in tallies for problem in one.wrong))
    return result


class Campaign:
    """Uninterrupted run of each command, and runs with faults to compare with it."""

    def __init__(self, config: Path, root: Path, seed: int) -> None:
        self.config, self.root, self.seed = config.resolve(), root, seed
        self.expected: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}

    def make_unbroken(self) -> None:
        """Runs prepare, train and evaluate without faults, in folders that later runs are copied from."""
        before: Path | None = None
        for command in ("prepare", "train", "evaluate"):
            folder = self.root / f"unbroken-{command}"
            if before:
                shutil.copytree(before, folder)
            folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            process = self.start(command, folder)
            if process.end(10 * TIMEOUT) != 0:
                raise RuntimeError(f"The unbroken {command} failed:\n{process.text()}")
            self.seconds[command] = time.monotonic() - started
            self.expected[command] = contents(folder, command)
            before = folder

    def start(self, command: str, folder: Path) -> Process:
        return Process([command, str(self.config), f"build={folder}"])

    def run(self, times: int, jobs: int) -> list[Tally]:
        """Runs chains of faults until there are `times`, evenly over all kinds."""
        tallies = {fault: Tally(fault.name, fault.command) for fault in FAULTS}
        with ThreadPoolExecutor(jobs) as pool, tqdm(total=times, desc="faults", mininterval=1.0) as bar:
            turn = 0
            while sum(one.times for one in tallies.values()) < times:
                left = times - sum(one.times for one in tallies.values())
                fewest = sorted(FAULTS, key=lambda fault: (tallies[fault].times, FAULTS.index(fault)))
                length = min(CHAIN, max(1, left // len(FAULTS)))
                batch = fewest[: min(max(jobs, 1) * 2, -(-left // length))]
                chains = [
                    pool.submit(self.chain, fault, turn + i, length, tallies[fault])
                    for i, fault in enumerate(batch)
                ]
                turn += len(batch)
                for chain in chains:
                    bar.update(chain.result())
        return [one for one in tallies.values() if one.times]

    def chain(self, fault: Fault, turn: int, length: int, tally: Tally) -> int:
        """Runs a command with up to `length` faults and resumes it. Returns the number of faults."""
        draw = random.Random(f"{self.seed} {turn}")
        # The name is as long as unbroken-prepare, since encoded datasets hold paths and are compared by byte.
        folder, before = self.root / f"run-{turn:012d}", {"train": "prepare", "evaluate": "train"}
        if fault.command in before:
            shutil.copytree(self.root / f"unbroken-{before[fault.command]}", folder)
        folder.mkdir(parents=True, exist_ok=True)
        times, lost, ended, problems = 0, 0, False, list[str]()
        while times < length and not ended:
            step = newest_step(folder)
            process = self.start(fault.command, folder)
            time.sleep(draw.uniform(0.05, 0.9) * self.seconds[fault.command])
            happened = process.alive() and inject(fault, process, folder, draw)
            code = process.end(TIMEOUT)
            process.lift()
            ended = code == 0  # it finished before the fault
            if ended or not happened:
                break
            times += 1
            tally.codes[str(code)] = tally.codes.get(str(code), 0) + 1
            if code not in (fault.codes if fault.limit else (-int(fault.number), *fault.codes)):
                problems.append(f"run {turn}: exit code {code}\n{process.text()[-1500:]}")
            if fault.then:
                damage_file(fault, folder, draw)
            elif newest_step(folder) < step or damaged_checkpoints(folder):
                lost += 1
        if not ended:
            process = self.start(fault.command, folder)
            ended = process.end(10 * TIMEOUT) == 0 or "holds a finished run" in process.text()
        differ = self.differences(folder, fault.command) if ended else []
        if not ended:
            problems.append(f"run {turn}: {process.text()[-3000:]}")
        elif differ:
            problems.append(f"run {turn}: differs in {', '.join(differ[:10])}")
        else:
            shutil.rmtree(folder)
        tally.times, tally.lost = tally.times + times, tally.lost + lost
        tally.recovered += times * ended
        tally.identical += times * (ended and not differ)
        tally.wrong += problems
        return times

    def differences(self, folder: Path, command: str) -> list[str]:
        """Names of files and metrics that differ from the uninterrupted run.

        An evaluation may exist twice: if it is killed after its last file, the next command repeats it.
        """
        found, expected = contents(folder, command), self.expected[command]
        names = expected if command == "evaluate" else {**expected, **found}
        return sorted(name for name in names if found.get(name) != expected.get(name))


def inject(fault: Fault, process: Process, folder: Path, draw: random.Random) -> bool:
    """Applies a fault to a process. Returns whether the process was still running."""
    if fault.limit == "disk":
        return process.fill_disk(draw.randrange(SMALL))
    if fault.limit == "folder":
        return process.forbid(
            [p for p in (folder / "runs" / "faults", folder / "runs/faults/checkpoints") if p.exists()]
        )
    sent = process.signal(fault.number)
    if fault.twice:
        time.sleep(draw.uniform(0.0, 0.3))
        process.signal(fault.number)
    return sent


def damage_file(fault: Fault, folder: Path, draw: random.Random) -> None:
    """Truncates a random file at a random length, or flips a random bit of it."""
    files = sorted(folder.glob(fault.of))
    if not files:
        return
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    if fault.then == "flip":
        content[draw.randrange(len(content) // 4, 3 * len(content) // 4)] ^= 1 << draw.randrange(8)
    else:
        del content[draw.randrange(max(len(content) - 8, 1)) :]
    file.unlink()  # keeps other hard links intact
    file.write_bytes(content)


def newest_step(folder: Path) -> int:
    """Largest step of the intact checkpoints; -1 without one."""
    whole = [file for file in folder.glob("runs/*/checkpoints/*.ckpt") if not find_damage(file)]
    return max((read_checkpoint(file)["global_step"] for file in whole), default=-1)


def damaged_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that are damaged."""
    return [file for file in folder.glob("runs/*/checkpoints/*.ckpt") if find_damage(file)]
