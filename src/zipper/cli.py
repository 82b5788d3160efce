"""The command line: `python -m zipper COMMAND CONFIG.yaml [key=value ...]`."""

import argparse
import atexit
import json
import multiprocessing
import os
import shlex
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# Set before the imports that read them: tokenizers warns about forks, and W&B prints a lot.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_SILENT", "true")
# OpenMP's threads wait for each other awake, for milliseconds. Where another program has one of their cores,
# each operator then takes a time slice of the scheduler, and a step 30 times as long.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from zipper.arguments import (
    Command,
    add_certify_arguments,
    add_compare_arguments,
    add_config_arguments,
    add_export_arguments,
    add_generate_arguments,
    add_import_gguf_arguments,
    add_push_arguments,
    add_serve_arguments,
    config_command,
)
from zipper.config import RunConfig, asset, describe
from zipper.disk import disk_failure
from zipper.errors import ConfigError, ZipperError
from zipper.stop import Stopped, requeue, stop_on_signal
from zipper.streams import safe_output


def prepare(cfg: RunConfig, command: str) -> None:
    """make the corpus and encode it: audio to EnCodec units, text to subwords"""
    from zipper.clock import Clock
    from zipper.data.prepare import prepare as prepare_dataset
    from zipper.distributed import check_trainer, encoding_settings
    from zipper.generation.extended import extended
    from zipper.modalities.base import load_modalities
    from zipper.training.fine_tuning import fine_tuned, units_folder

    check_trainer(encoding_settings(cfg.train))
    cfg = extended(fine_tuned(cfg))  # whose codec and tokenizer a training from a model takes
    clock = Clock()
    dataset = prepare_dataset(cfg, clock, load_modalities(cfg, units_folder(cfg)))
    print(json.dumps({**dataset.info, "stage_seconds": clock.rounded()}, indent=2))
    print(f"encoded dataset -> {dataset.folder}")


def download(cfg: RunConfig, command: str) -> None:
    """download LibriSpeech or LibriTTS into data.folder, with checks of checksums and disk space"""
    from zipper.corpora.download import download as run

    run(cfg)


def train_codec(cfg: RunConfig, command: str) -> None:
    """train a small EnCodec on the training split and write it to train_codec.out"""
    from zipper.corpora.open import open_corpus
    from zipper.disk import check_output_paths
    from zipper.training.codec import check_codec_training
    from zipper.training.codec import train_codec as run

    check_codec_training(cfg)
    check_output_paths(cfg)
    print(f"codec -> {run(cfg, open_corpus(cfg), command)}")


def evaluate_codec(cfg: RunConfig, command: str) -> None:
    """measure the ASR scorer's WER on codec resynthesis, for every number of codebooks"""
    from zipper.evaluation.codec import evaluate_codec as run

    run(cfg, command)


def pretrain(cfg: RunConfig, command: str) -> None:
    """pre-train one tower on one modality, and export it"""
    from zipper.training.run import pretrain as run

    run(cfg, command)


def train(cfg: RunConfig, command: str) -> None:
    """train zipped towers: prepare the dataset if needed, train, evaluate on the test split"""
    from zipper.training.run import train as run

    run(cfg, command)


def generate(args: argparse.Namespace) -> None:
    """synthesize speech, transcribe speech, or a chain of both, with a trained or shipped model"""
    from zipper.generation.command import generate as run

    run(args)


def compare(args: argparse.Namespace) -> None:
    """test whether two results, or two sets of seeds, differ: paired tests over utterances, and over seeds"""
    from zipper.evaluation.significance import compare_files

    compare_files(args.a, args.b)


def import_gguf(args: argparse.Namespace) -> None:
    """convert a GGUF file of the Llama family to a folder for model.towers.text.init"""
    from zipper.models.gguf import import_gguf as run

    run(args.file, args.folder)
    print(f"model -> {args.folder}")


def certify(args: argparse.Namespace) -> None:
    """check that the frozen towers of an exported model are as pre-trained, or as pre-trained and rounded"""
    from zipper.generation.exported import certify as run
    from zipper.generation.exported import rounded_towers

    folder = asset(args.folder)
    found, bits = run(folder), rounded_towers(folder)
    shown = [f"{name} as pre-trained{f', in {bits[name]} bits' if name in bits else ''}" for name in found]
    print(f"{args.folder}: {'; '.join(shown) or 'no tower is frozen'}")


def export(args: argparse.Namespace) -> None:
    """write a trained or exported model to a folder, in half precision, 8 or 4 bits a weight"""
    from zipper.generation.exported import export as run

    run(asset(args.model), args.folder, args.bits, args.frozen_too, args.overrides)
    print(f"model -> {args.folder}")


def push(args: argparse.Namespace) -> None:
    """upload an exported model or tower to the Hugging Face hub, with your own token"""
    from zipper.hub import push as run

    print(run(args.folder, args.repository, args.private))


def serve(args: argparse.Namespace) -> None:
    """serve a model over HTTP, for clients of OpenAI's audio endpoints"""
    from zipper.serving.command import serve as run

    run(args)


def web(args: argparse.Namespace) -> None:
    """serve a page with a microphone, a live transcript and speech, and the endpoints of `serve`"""
    serve(args)


def evaluate(args: argparse.Namespace) -> None:
    """evaluate a trained run (its config.yaml) or an exported model (its folder) on a split"""
    from zipper.evaluation.place import evaluation_config, run_folder, training_directory
    from zipper.evaluation.run import evaluate_exported, evaluate_run
    from zipper.generation.exported import is_exported

    if is_exported(model := asset(args.config)):
        evaluate_exported(model, args.overrides, args.line)
        return
    if (args.config / "config.yaml").is_file():
        args.config /= "config.yaml"
    elif args.config.is_dir():
        raise ConfigError(f"{args.config} holds no model: neither zipper.json nor config.yaml is there.")
    cfg, folder = evaluation_config(args.config, args.overrides), run_folder(args.config, args.overrides)
    if folder is None:
        evaluate_run(cfg, args.line, overrides=args.overrides)
    else:
        here = Path.cwd().resolve()
        with training_directory(cfg, folder, args.overrides) as found:
            stays = here == Path.cwd().resolve() and folder.is_relative_to(here)
            shown = folder.relative_to(here) if stays else folder
            evaluate_run(found, args.line, shown, args.overrides)


COMMANDS: dict[str, Command] = {
    "download": config_command(download),
    "prepare": config_command(prepare),
    "train-codec": config_command(train_codec),
    "evaluate-codec": config_command(evaluate_codec),
    "pretrain": config_command(pretrain),
    "train": config_command(train),
    "evaluate": Command(evaluate, add_config_arguments, lists_settings=True),
    "generate": Command(generate, add_generate_arguments),
    "serve": Command(serve, add_serve_arguments),
    "web": Command(web, add_serve_arguments),
    "compare": Command(compare, add_compare_arguments),
    "import-gguf": Command(import_gguf, add_import_gguf_arguments),
    "export": Command(export, add_export_arguments),
    "certify": Command(certify, add_certify_arguments),
    "push": Command(push, add_push_arguments),
}


def commands() -> dict[str, Command]:
    """Commands of the library and, in a checkout, of the reproduction."""
    if find_spec("reproduce") is None:
        return COMMANDS
    return {**COMMANDS, **import_module("reproduce.commands").COMMANDS}


def run(argv: list[str]) -> None:
    """Parses the arguments and runs one command. Raises ZipperError on a user's mistake."""
    args, more = parser().parse_known_args(argv)
    if more and (not hasattr(args, "overrides") or any(word.startswith("-") for word in more)):
        parser().error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.overrides = [*args.overrides, *more]  # overrides after an option
    args.line = "python -m zipper " + shlex.join(argv)
    commands()[args.command].run(args)


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits with its status.

    A user's mistake prints one line and exits with 2. SIGTERM, SIGHUP and SIGUSR1 exit with 75, Ctrl-C with
    130; the same command then resumes. A closed terminal does not stop the command.
    """
    with safe_output():
        _main(argv)


def console() -> None:
    """Entry point of the shell: `main`, and for `generate` an exit at once, since Python takes half a second
    to free what torch has imported."""
    main()
    if sys.argv[1:2] == ["generate"]:
        atexit._run_exitfuncs()
        os._exit(0)


def _main(argv: list[str] | None) -> None:
    try:
        with stop_on_signal():
            run(sys.argv[1:] if argv is None else argv)
    except Stopped as stop:
        print(f"{stop}: finished work is kept; run the same command to resume", file=sys.stderr)
        for child in multiprocessing.active_children():  # interpreter exit would wait for them
            child.kill()
        if stop.signal == signal.SIGUSR1:
            requeue()
        # Lightning kills the first process when another one has ended badly.
        sys.exit(stop.code if os.environ.get("LOCAL_RANK", "0") == "0" else 0)
    except (ZipperError, OSError) as error:
        reason = disk_failure(error) if isinstance(error, OSError) else error
        if not reason:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """Argument parser of all commands. `--help` lists every setting with its default."""
    rows = [*describe()]
    width = max(len(key) for key, _, _ in rows)
    settings = "settings, as key=value; SECTION=NAME loads configs/SECTION/NAME.yaml:\n" + "\n".join(
        f"  {key:<{width}} {text} (default: {default})" for key, default, text in rows
    )
    shape = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "zipper",
        description="Zipper: pre-trained decoder towers, fused by gated cross-attention.",
        epilog=settings,
        formatter_class=shape,
    )
    parsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands().items():
        one = parsers.add_parser(
            name, help=command.help, description=command.help, formatter_class=shape,
            epilog=settings if command.lists_settings else None,
        )  # fmt: skip
        command.arguments(one)
    return top
