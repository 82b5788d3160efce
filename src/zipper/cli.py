"""The command line: `python -m zipper COMMAND CONFIG.yaml [key=value ...]`."""

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# Before any import that reads them: tokenizers warns about forks, W&B talks a lot.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_SILENT", "true")

from zipper.arguments import add_arguments, add_others
from zipper.config import describe, load_config
from zipper.disk import lost_disk
from zipper.errors import ZipperError
from zipper.schema import RunConfig
from zipper.stop import Stopped, requeue, signals
from zipper.streams import unbroken_output


def prepare(cfg: RunConfig, command: str) -> None:
    """make the corpus and encode it once: waves to EnCodec units, text to subwords"""
    from zipper.report.clock import Clock
    from zipper.train.engine import check_trainer, encoding
    from zipper.units.prepare import prepare as prepare_store

    check_trainer(encoding(cfg.train))
    clock = Clock()
    store = prepare_store(cfg, clock)
    print(json.dumps({**store.facts, "stage_seconds": clock.rounded()}, indent=2))
    print(f"store -> {store.folder}")


def download(cfg: RunConfig, command: str) -> None:
    """fetch LibriSpeech or LibriTTS into data.folder, archive by archive, checksums and disk checked"""
    from zipper.corpora.download import download as run

    run(cfg)


def train_codec(cfg: RunConfig, command: str) -> None:
    """train the small EnCodec on the training split, and write it to train_codec.out"""
    from zipper.corpora.open import open_corpus
    from zipper.disk import check_places
    from zipper.train.codec import check_codec_training
    from zipper.train.codec import train_codec as run

    check_codec_training(cfg)
    check_places(cfg)
    print(f"codec -> {run(cfg, open_corpus(cfg), command)}")


def evaluate_codec(cfg: RunConfig, command: str) -> None:
    """let the judge hear the codec's round trips, with every number of codebooks"""
    from zipper.evaluate.codec import evaluate_codec as run

    run(cfg, command)


def pretrain(cfg: RunConfig, command: str) -> None:
    """train one tower alone on one modality, and export it"""
    from zipper.train.run import pretrain as run

    run(cfg, command)


def train(cfg: RunConfig, command: str) -> None:
    """zip towers: prepare what is missing, train, evaluate on the test split"""
    from zipper.train.run import train as run

    run(cfg, command)


def bench(cfg: RunConfig, command: str) -> None:
    """measure speed of training and decoding, padding and waiting, as ratios within one run"""
    from zipper.bench.speed import bench as run

    run(cfg, command)


def bench_encoding(cfg: RunConfig, command: str) -> None:
    """measure preparing against the codec alone, and two processes against one"""
    from zipper.bench.encoding import bench_encoding as run

    run(cfg, command)


def bench_saving(cfg: RunConfig, command: str) -> None:
    """measure what it costs that a run cannot be lost: checkpoints, checks, signals"""
    from zipper.bench.saving import bench_saving as run

    run(cfg, command)


def report(cfg: RunConfig, command: str) -> None:
    """write RESULTS.md from results/*.json"""
    from zipper.config import ROOT
    from zipper.report.comparison import in_short
    from zipper.report.results import report as run

    file = run()
    print(in_short(ROOT / "results"))
    print(file)


COMMANDS: dict[str, Callable[[RunConfig, str], None]] = {
    "download": download,
    "prepare": prepare,
    "train-codec": train_codec,
    "evaluate-codec": evaluate_codec,
    "pretrain": pretrain,
    "train": train,
    "bench": bench,
    "bench-encoding": bench_encoding,
    "bench-saving": bench_saving,
    "report": report,
}


def generate(args: argparse.Namespace) -> None:
    """speak a text, write down speech, or a chain of both, with a trained or shipped model"""
    from zipper.generate.command import generate as run

    run(args)


def compare(args: argparse.Namespace) -> None:
    """test whether two results differ: paired Wilcoxon and bootstrap over their utterances"""
    from zipper.evaluate.significance import compare_files

    compare_files(args.a, args.b)


def import_gguf(args: argparse.Namespace) -> None:
    """turn a GGUF file of the Llama family into a folder that model.towers.text.init can name"""
    from zipper.model.gguf import import_gguf as run

    run(args.file, args.folder)
    print(f"model -> {args.folder}")


def push(args: argparse.Namespace) -> None:
    """upload an exported model or tower to the Hugging Face hub, with your own token"""
    from zipper.hub import push as run

    print(run(args.folder, args.repository, args.private))


def ablate(args: argparse.Namespace) -> None:
    """run a grid over settings: what is not finished yet, one by one or several at a time"""
    from zipper import ablate as grid

    if args.dry_run:
        grid.listed(args.file, args.settings)
    elif args.slurm:
        print(f"sbatch {shlex.quote(str(grid.write_slurm(args.file, args.settings)))}")
    elif args.wandb_sweep:
        sweep = grid.write_sweep(args.file, args.settings)
        print(f"wandb sweep {sweep}, then wandb agent with the id that it prints")
    else:
        grid.ablate(args.file, args.only, args.jobs, args.settings)


def faults(args: argparse.Namespace) -> None:
    """kill small real runs in every way, take them up again, and compare with the unbroken one"""
    from zipper.bench.faults import faults as run

    settings = [f"result={args.result}"] if args.result else []
    run(load_config(args.config, settings), args.config, args.times, args.jobs, args.line)


def dashboard(args: argparse.Namespace) -> None:
    """create the W&B dashboard in your project; without a key, check it and say how to go on"""
    from zipper.report.dashboard import dashboard as run

    run(args.entity, args.project, Path("build") / "runs")


def evaluate(args: argparse.Namespace) -> None:
    """decode a split with a trained run (its config.yaml) or with an exported model (its folder)"""
    from zipper.evaluate.place import asked_config, run_folder, where_trained
    from zipper.evaluate.run import evaluate_exported, evaluate_run
    from zipper.generate.zipped import is_exported

    if is_exported(args.config):
        evaluate_exported(args.config, args.settings, args.line)
        return
    cfg, folder = asked_config(args.config, args.settings), run_folder(args.config, args.settings)
    if folder is None:
        evaluate_run(cfg, args.line)
    else:
        with where_trained(cfg, folder, args.settings) as found:
            here = Path.cwd().resolve()
            evaluate_run(
                found, args.line, folder.relative_to(here) if folder.is_relative_to(here) else folder
            )


OTHERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "evaluate": evaluate,
    "generate": generate,
    "compare": compare,
    "import-gguf": import_gguf,
    "push": push,
    "ablate": ablate,
    "faults": faults,
    "dashboard": dashboard,
}


def run(argv: list[str]) -> None:
    """One command. Raises ZipperError on a user's mistake, before work starts."""
    args, more = parser().parse_known_args(argv)
    if more and (not hasattr(args, "settings") or any(word.startswith("-") for word in more)):
        parser().error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.settings = [*args.settings, *more]  # key=value words after an option
    args.line = "python -m zipper " + shlex.join(argv)
    if args.command in OTHERS:
        OTHERS[args.command](args)
    else:
        COMMANDS[args.command](load_config(args.config, args.settings), args.line)


def main(argv: list[str] | None = None) -> None:
    """Runs a command. A user's mistake ends it with one line and status 2; SIGTERM, SIGHUP and SIGUSR1 with
    75, Ctrl-C with 130: the same command goes on. A terminal that is gone ends nothing."""
    with unbroken_output():
        _main(argv)


def _main(argv: list[str] | None) -> None:
    try:
        with signals():
            run(sys.argv[1:] if argv is None else argv)
    except Stopped as stop:
        print(f"{stop}: what is finished is kept, the same command goes on", file=sys.stderr)
        for child in multiprocessing.active_children():  # who would wait for their own end
            child.kill()
        if stop.signal == signal.SIGUSR1:
            requeue()
        # Lightning kills the first process when another one has ended badly.
        sys.exit(stop.code if os.environ.get("LOCAL_RANK", "0") == "0" else 0)
    except ZipperError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not (reason := lost_disk(error)):
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """Every command takes a config and words that change it; --help lists them all."""
    rows = [f"  {key:<{WIDTH}} {meaning} (default: {default})" for key, default, meaning in describe()]
    settings = (
        "settings, as key=value, also by section from configs/SECTION/NAME.yaml as SECTION=NAME:\n"
        + "\n".join(rows)
    )
    shape = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "zipper", description="Pre-trained towers, zipped.", epilog=settings, formatter_class=shape
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in {**COMMANDS, "evaluate": evaluate}.items():
        one = commands.add_parser(
            name, help=function.__doc__, description=function.__doc__, epilog=settings, formatter_class=shape
        )
        if function is report:
            one.set_defaults(config=None, settings=[])
            continue
        one.add_argument("config", type=Path, help="YAML file that holds what differs from the defaults")
        one.add_argument("settings", nargs="*", metavar="key=value", help="changes to it")
    one = commands.add_parser(
        "generate", help=generate.__doc__, description=generate.__doc__, formatter_class=shape
    )
    add_arguments(one)
    add_others(commands, {name: function.__doc__ or "" for name, function in OTHERS.items()})
    return top


WIDTH = max(len(key) for key, _, _ in describe())
