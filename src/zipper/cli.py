"""The command line: `python -m zipper COMMAND CONFIG.yaml [key=value ...]`."""

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# Before any import that reads them: tokenizers warns about forks, W&B talks a lot.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_SILENT", "true")

from zipper.arguments import (
    Command,
    config_command,
    of_certify,
    of_compare,
    of_config,
    of_generate,
    of_import_gguf,
    of_push,
)
from zipper.config import RunConfig, describe
from zipper.disk import lost_disk
from zipper.errors import ZipperError
from zipper.stop import Stopped, requeue, signals
from zipper.streams import unbroken_output


def prepare(cfg: RunConfig, command: str) -> None:
    """make the corpus and encode it once: waves to EnCodec units, text to subwords"""
    from zipper.clock import Clock
    from zipper.data.prepare import prepare as prepare_dataset
    from zipper.distributed import check_trainer, encoding

    check_trainer(encoding(cfg.train))
    clock = Clock()
    dataset = prepare_dataset(cfg, clock)
    print(json.dumps({**dataset.info, "stage_seconds": clock.rounded()}, indent=2))
    print(f"store -> {dataset.folder}")


def download(cfg: RunConfig, command: str) -> None:
    """fetch LibriSpeech or LibriTTS into data.folder, archive by archive, checksums and disk checked"""
    from zipper.corpora.download import download as run

    run(cfg)


def train_codec(cfg: RunConfig, command: str) -> None:
    """train the small EnCodec on the training split, and write it to train_codec.out"""
    from zipper.corpora.open import open_corpus
    from zipper.disk import check_places
    from zipper.training.codec import check_codec_training
    from zipper.training.codec import train_codec as run

    check_codec_training(cfg)
    check_places(cfg)
    print(f"codec -> {run(cfg, open_corpus(cfg), command)}")


def evaluate_codec(cfg: RunConfig, command: str) -> None:
    """let the judge hear the codec's round trips, with every number of codebooks"""
    from zipper.evaluation.codec import evaluate_codec as run

    run(cfg, command)


def pretrain(cfg: RunConfig, command: str) -> None:
    """train one tower alone on one modality, and export it"""
    from zipper.training.run import pretrain as run

    run(cfg, command)


def train(cfg: RunConfig, command: str) -> None:
    """zip towers: prepare what is missing, train, evaluate on the test split"""
    from zipper.training.run import train as run

    run(cfg, command)


def generate(args: argparse.Namespace) -> None:
    """speak a text, write down speech, or a chain of both, with a trained or shipped model"""
    from zipper.generation.command import generate as run

    run(args)


def compare(args: argparse.Namespace) -> None:
    """test whether two results differ: paired Wilcoxon and bootstrap over their utterances"""
    from zipper.evaluation.significance import compare_files

    compare_files(args.a, args.b)


def import_gguf(args: argparse.Namespace) -> None:
    """turn a GGUF file of the Llama family into a folder that model.towers.text.init can name"""
    from zipper.models.gguf import import_gguf as run

    run(args.file, args.folder)
    print(f"model -> {args.folder}")


def certify(args: argparse.Namespace) -> None:
    """check that the frozen towers of an exported model are, bit for bit, what they were pre-trained as"""
    from zipper.generation.exported import certify as run

    found = run(args.folder)
    print(f"{args.folder}: " + (f"{', '.join(found)} as pre-trained" if found else "no tower is frozen"))


def push(args: argparse.Namespace) -> None:
    """upload an exported model or tower to the Hugging Face hub, with your own token"""
    from zipper.hub import push as run

    print(run(args.folder, args.repository, args.private))


def evaluate(args: argparse.Namespace) -> None:
    """decode a split with a trained run (its config.yaml) or with an exported model (its folder)"""
    from zipper.evaluation.place import asked_config, run_folder, where_trained
    from zipper.evaluation.run import evaluate_exported, evaluate_run
    from zipper.generation.exported import is_exported

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


COMMANDS: dict[str, Command] = {
    "download": config_command(download),
    "prepare": config_command(prepare),
    "train-codec": config_command(train_codec),
    "evaluate-codec": config_command(evaluate_codec),
    "pretrain": config_command(pretrain),
    "train": config_command(train),
    "evaluate": Command(evaluate, of_config, settings=True),
    "generate": Command(generate, of_generate),
    "compare": Command(compare, of_compare),
    "import-gguf": Command(import_gguf, of_import_gguf),
    "certify": Command(certify, of_certify),
    "push": Command(push, of_push),
}


def commands() -> dict[str, Command]:
    """Those of the library, and in a checkout those of the reproduction."""
    if find_spec("reproduce") is None:
        return COMMANDS
    return {**COMMANDS, **import_module("reproduce.commands").COMMANDS}


def run(argv: list[str]) -> None:
    """One command. Raises ZipperError on a user's mistake, before work starts."""
    args, more = parser().parse_known_args(argv)
    if more and (not hasattr(args, "settings") or any(word.startswith("-") for word in more)):
        parser().error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.settings = [*args.settings, *more]  # key=value words after an option
    args.line = "python -m zipper " + shlex.join(argv)
    commands()[args.command].run(args)


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
    rows = [*describe()]
    width = max(len(key) for key, _, _ in rows)
    settings = (
        "settings, as key=value, also by section from configs/SECTION/NAME.yaml as SECTION=NAME:\n"
        + "\n".join(f"  {key:<{width}} {meaning} (default: {default})" for key, default, meaning in rows)
    )
    shape = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "zipper", description="Pre-trained towers, zipped.", epilog=settings, formatter_class=shape
    )
    parsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands().items():
        one = parsers.add_parser(
            name, help=command.meaning, description=command.meaning, formatter_class=shape,
            epilog=settings if command.settings else None,
        )  # fmt: skip
        command.arguments(one)
    return top
