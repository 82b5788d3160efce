"""Commands of the reproduction: sweeps, benchmarks, fault injection, RESULTS.md, the W&B dashboard."""

import argparse
import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from zipper.arguments import Command, add_number, config_command
from zipper.config import RunConfig, load_config
from zipper.disk import check_result_file

STAGES = ("throughput", "decode")  # of `gpu`


def writes_result(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """Command that writes the file `--out`, which is checked before it starts."""

    @wraps(run)
    def checked(args: argparse.Namespace) -> None:
        check_result_file(args.out, "--out ")
        run(args)

    return checked


def bench(cfg: RunConfig, command: str) -> None:
    """benchmark training and decoding speed, padding and data loading"""
    from reproduce.bench.speed import bench as run

    run(cfg, command)


def bench_encoding(cfg: RunConfig, command: str) -> None:
    """benchmark `zipper prepare` against the codec alone, and two processes against one"""
    from reproduce.bench.encoding import bench_encoding as run

    run(cfg, command)


def bench_saving(cfg: RunConfig, command: str) -> None:
    """benchmark the overhead of fault tolerance: checkpoints, checks of each step, signals"""
    from reproduce.bench.saving import bench_saving as run

    run(cfg, command)


def report(args: argparse.Namespace) -> None:
    """write RESULTS.md from results/*.json"""
    from reproduce.report.results import report as run

    file, short = run()
    print(short)
    print(file)


def sweep(args: argparse.Namespace) -> None:
    """run the unfinished runs of a sweep over settings, one by one or in parallel"""
    from reproduce import sweep as sweeps

    chosen = ["--only", args.only] if args.only else []
    first = f"zipper sweep {shlex.join([str(args.file), *args.overrides, *chosen, '--prepare'])}"
    if args.dry_run:
        sweeps.list_runs(args.file, args.only, args.overrides)
    elif args.slurm:
        written = sweeps.write_slurm(args.file, args.only, args.overrides)
        print(f"{first} && sbatch {shlex.quote(str(written))}")
    elif args.wandb_sweep:
        written = sweeps.write_wandb_sweep(args.file, args.only, args.overrides)
        print(f"run `{first}`, `wandb sweep {written}`, then `wandb agent` with the printed id")
    else:
        sweeps.run_sweep(args.file, args.only, args.jobs, args.overrides, args.prepare)


def faults(args: argparse.Namespace) -> None:
    """inject faults into small real runs, resume them, and compare with an uninterrupted run"""
    if args.result:
        check_result_file(Path(args.result), "--result ")
    from reproduce.bench.faults import faults as run

    settings = [f"result={args.result}"] if args.result else []
    run(load_config(args.config, settings), args.config, args.times, args.jobs, args.line)


def gpu(args: argparse.Namespace) -> None:
    """measure training throughput and decoding speed on a GPU, on random tokens"""
    from reproduce.bench.gpu import run

    run(args)


@writes_result
def bench_scale(args: argparse.Namespace) -> None:
    """measure how long a training takes to start on simulated corpora, and its memory"""
    from reproduce.bench.scale import run

    run(args)


@writes_result
def bench_live(args: argparse.Namespace) -> None:
    """measure the delay of streamed speech and of live words, and the error of word times"""
    from reproduce.bench.live import run

    run(args)


@writes_result
def bench_serve(args: argparse.Namespace) -> None:
    """measure a server with many clients at once, against one request after another"""
    from reproduce.bench.serve import run

    run(args)


@writes_result
def three_towers(args: argparse.Namespace) -> None:
    """score a model of three towers on pages: seen pairs, chains, and the pair that was not trained"""
    from reproduce.three_towers.scores import measure

    measure(args.model, args.out, args.parts, args.decode, args.line)


@writes_result
def bench_towers(args: argparse.Namespace) -> None:
    """measure parameters, FLOPs, memory and time of 2 to 4 towers, with and without unused pairs"""
    from reproduce.three_towers.cost import bench_towers as run

    run(args.out, args.line)


@writes_result
def bench_shards(args: argparse.Namespace) -> None:
    """count what each process holds of models of 8B parameters that FSDP2 shards"""
    from reproduce.bench.shards import bench_shards as run

    run(args.out, args.line)


def dashboard(args: argparse.Namespace) -> None:
    """create the W&B dashboard in your project; without a W&B key, only check it"""
    from reproduce.report.dashboard import dashboard as run

    run(args.entity, args.project, Path("build") / "runs")


def _add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="configs/sweeps/NAME.yaml or configs/ablations/NAME.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides for all runs")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their state")
    add_number(parser, "--jobs", 1, "parallel runs, sharing the cores")
    parser.add_argument("--only", metavar="RUN", help="only this run, or those of a pattern: '*-seed0'")
    parser.add_argument("--prepare", action="store_true", help="only pre-train towers and prepare datasets")
    parser.add_argument("--slurm", action="store_true", help="write a SLURM array for the sweep")
    parser.add_argument("--wandb-sweep", action="store_true", help="write a W&B sweep file")


def _add_faults_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configs/faults.yaml")
    add_number(parser, "--times", 120, "number of faults")
    add_number(parser, "--jobs", 2, "parallel runs")
    parser.add_argument("--result", help="file for the table (default: print it only)")


def _add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the results")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="default: throughput and decode"
    )
    add_number(parser, "--tokens", 65_536, "padded tokens of a step")
    add_number(parser, "--turns", 15, "measured steps; their median is reported")
    add_number(parser, "--batches", [1, 16, 256], "sentences of decode")
    parser.add_argument("--small", action="store_true", help="towers of two layers, for a trial on a CPU")


def _add_scale_arguments(parser: argparse.ArgumentParser) -> None:
    rows = [40_000, 281_241]  # the second is LibriSpeech, 960 h
    add_number(parser, "--rows", rows, "utterances of each corpus")
    parser.add_argument("--out", type=Path, default=Path("results/scale.json"), help="file of the result")


def _add_live_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run or of an exported model (assets/zipped)")
    add_number(parser, "--sentences", 400, "of the test split")
    add_number(parser, "--speaking", 20, "sentences that are spoken")
    add_number(parser, "--minutes", 30.0, "of live sound", least=0)
    add_number(parser, "--threads", 2, "of PyTorch")
    parser.add_argument("--out", type=Path, default=Path("build/live.json"), help="file of the result")


def _add_bench_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run or of an exported model (assets/zipped)")
    add_number(parser, "--clients", 32, "at once")
    add_number(parser, "--requests", 3, "of each client and turn")
    add_number(parser, "--batch", 16, "generated together")
    add_number(parser, "--turns", 5, "of each server")
    parser.add_argument("--out", type=Path, default=Path("build/serve.json"), help="file of the result")


def _add_three_towers_arguments(parser: argparse.ArgumentParser) -> None:
    parts = ("seen", "heard", "direct", "unseen")
    parser.add_argument("model", type=Path, help="folder of an exported model or of a run")
    parser.add_argument("--out", type=Path, required=True, help="file of the result")
    parser.add_argument("--parts", nargs="+", choices=parts, default=["seen"], help="default: seen")
    parser.add_argument("--decode", nargs="+", default=[], metavar="KEY=VALUE", help="decoding overrides")


def _add_bench_towers_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("results/three-towers/cost.json"), help="file")


def _add_bench_shards_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("build/shards.json"), help="file of the result")


def _add_dashboard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entity", default="", help="W&B user or team (default: that of your key)")
    parser.add_argument("--project", default="zipper", help="log.project of the runs (default: zipper)")


COMMANDS: dict[str, Command] = {
    "bench": config_command(bench),
    "bench-encoding": config_command(bench_encoding),
    "bench-saving": config_command(bench_saving),
    "bench-scale": Command(bench_scale, _add_scale_arguments),
    "bench-live": Command(bench_live, _add_live_arguments),
    "bench-serve": Command(bench_serve, _add_bench_serve_arguments),
    "report": Command(report, lambda parser: None),
    "sweep": Command(sweep, _add_sweep_arguments),
    "gpu": Command(gpu, _add_gpu_arguments),
    "faults": Command(faults, _add_faults_arguments),
    "bench-shards": Command(bench_shards, _add_bench_shards_arguments),
    "bench-towers": Command(bench_towers, _add_bench_towers_arguments),
    "three-towers": Command(three_towers, _add_three_towers_arguments),
    "dashboard": Command(dashboard, _add_dashboard_arguments),
}
