"""`aim-lightning suite`: train and evaluate the variations of an experiment, and tabulate them."""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.arguments import split
from aim_lightning.cli.build.input_checks import check_files
from aim_lightning.cli.commands import evaluate, plan, sweep
from aim_lightning.cli.common_options import Parser, flag, number
from aim_lightning.cli.config import SECTIONS, read_and_check
from aim_lightning.cli.suite import Suite, SuiteRun, read_suite
from aim_lightning.utils.errors import UserError, suggest
from aim_lightning.utils.logging import log
from aim_lightning.utils.table import aligned

if TYPE_CHECKING:
    from aim_lightning.cli.plan.report import Estimate

HELP = "train and evaluate variations of an experiment, with a table and curves"
NEEDS_CONFIG = False
SUITES = Path("experiments/suites")
LOG = "suite.log"  # in the directory of a run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("name", metavar="NAME", help=f"file of {SUITES} without .yaml, or a path")
    jobs = "processes or array tasks at a time (default: up to 4 per visible GPU where memory allows)"
    parser.add_argument("--jobs", type=number(int, 1), metavar="N", help=jobs)
    parser.add_argument("--dry", **flag("show runs, their limits and estimated hours, and train nothing"))
    parser.add_argument("--slurm", **flag("submit one SLURM array of the incomplete runs; with --dry print its script"))
    plan.add_options(parser)  # of --dry


def run(config: None, options: argparse.Namespace) -> int:
    """Train what is missing, evaluate, and write results.csv, table.md and charts."""
    suite = read_suite(_path(options.name), options.arguments)
    runs = suite.runs()
    _check_evaluation(suite, runs)
    if options.dry and not options.slurm:
        return _show(runs, options)
    for item in runs:
        check_files("fit", item.config.values)
    todo = {item.directory.run: item for item in runs if not _progress(item)[0]}
    log(f"{suite.path}: {len(runs)} runs, {len(runs) - len(todo)} complete")
    if options.slurm:
        return _submit(suite, runs, todo, options)
    _train(suite, runs, todo, options.jobs)
    _report(suite, runs)
    return 0


def _path(name: str) -> Path:
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in SUITES.glob("*.yaml"))
        hint = suggest(name, names) or f"; use one of {', '.join(names)}"
        raise UserError(f"{path} does not exist{hint}")
    return path


def _progress(item: SuiteRun) -> tuple[bool, int, float]:
    """Return True if nothing is left to train, and the step and seconds of the newest checkpoint.

    Raises:
        UserError: the run must not continue, because its configuration changed or its checkpoints are damaged.
    """
    from aim_lightning.runs.history import read_content
    from aim_lightning.runs.results import recorded_step
    from aim_lightning.runs.resume_policy import decide, refusal

    content = read_content(item.directory, item.config.values, verify=False)
    decision = decide(content, advice="rename the suite, or move the run away")
    if decision.action == "refuse":
        raise UserError(refusal(item.directory, decision))
    is_complete = decision.action == "finished" and recorded_step(item.directory) == decision.step
    return is_complete, decision.step, content.newest.seconds if content.newest else 0.0


def _train(suite: Suite, runs: list[SuiteRun], todo: dict[str, SuiteRun], jobs: int | None) -> None:
    """Train and evaluate; finished evaluations are found by `evaluate` itself.

    Raises:
        UserError: a process failed.
    """
    from aim_lightning.cli.processes import run_tasks

    tasks = {}
    for item in runs:
        commands = [item.words("fit")] if item.directory.run in todo else []
        tasks[item.directory.run] = commands + _evaluation(suite, item)
    jobs = jobs or _default_jobs(runs)
    logs = {item.directory.run: item.directory.path / LOG for item in runs} if jobs > 1 else {}
    if failed := run_tasks({name: commands for name, commands in tasks.items() if commands}, jobs, logs):
        codes = ", ".join(f"{name} (exit code {code})" for name, code in failed.items())
        where = f"see {LOG} in the run directories" if logs else "see the errors above"
        raise UserError(f"{suite.path}: {len(failed)} of {len(runs)} runs failed: {codes}; {where}")


def _default_jobs(runs: list[SuiteRun]) -> int:
    """Return the number of processes at a time: several per GPU where memory allows, one without a GPU."""
    from aim_lightning.cli.build.micro_batch import training_bytes
    from aim_lightning.cli.plan.report import meta_module
    from aim_lightning.cli.processes import free_memory, processes_per_gpu, visible_gpus

    if not (gpus := visible_gpus()):
        return 1
    configs = {item.variation: item.config for item in runs}.values()
    limits = [config.init_args("data").get("max_device_batch_size") for config in configs]
    estimates = list(map(training_bytes, map(meta_module, configs), limits))
    per_gpu, reason = processes_per_gpu(None if None in estimates else max(estimates), free_memory(gpus))
    log(f"{per_gpu * len(gpus)} processes at a time, {per_gpu} per GPU: {reason}; --jobs sets another number")
    return per_gpu * len(gpus)


def _evaluation(suite: Suite, item: SuiteRun) -> list[list[str]]:
    """Return the command that scores a run, none without `evaluate`."""
    options = []
    for name, value in suite.evaluate.items():
        options += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    if not options:
        return []
    if not (scales := item.scales(suite.guidance)):
        return [item.words("evaluate", *options)]
    grid = f"--grid=cfg_scale={','.join(map(str, scales))}"
    # The configured scale is checked too, and may need the null class.
    return [item.words("sweep", grid, f"--sampling.cfg_scale={scales[0]}", f"--name={suite.path.stem}", *options)]


def _check_evaluation(suite: Suite, runs: list[SuiteRun]) -> None:
    """Check the options of `evaluate`, which would otherwise fail after the training."""
    for item in {item.variation: item for item in runs}.values():
        for name, *words in _evaluation(suite, item):
            arguments, parser = split(words, plain=SECTIONS), Parser(prog=f"aim-lightning {name}", allow_abbrev=False)
            {"evaluate": evaluate, "sweep": sweep}[name].add_options(parser)
            try:
                parser.parse_args(arguments.rest)
                read_and_check(arguments)
            except UserError as error:
                raise UserError(f"{suite.path}: {name}: {str(error).removeprefix('command line: ')}") from None


def _report(suite: Suite, runs: list[SuiteRun]) -> None:
    from aim_lightning.cli.plan.report import meta_module
    from aim_lightning.evaluation.report.suite import Variation, write_report

    variations = {}
    for name in suite.variations:
        first, *others = (item for item in runs if item.variation == name)
        module, directories = meta_module(first.config), [item.directory for item in (first, *others)]
        parameters = sum(p.numel() for p in module.network.parameters())
        step_flops = module.network.flops_per_image() * module.global_batch_size
        variations[name] = Variation(directories, parameters, step_flops, first.scales(suite.guidance))
    directory = suite.path.with_suffix("")
    if text := write_report(directory, variations, bool(suite.evaluate), suite.power_law):
        log(text)
    log(f"results: {', '.join(str(path) for path in sorted(directory.iterdir()))}")


def _show(runs: list[SuiteRun], options: argparse.Namespace) -> int:
    """Print limit, progress and estimated hours of every run; one run per variation is measured."""
    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.cli.plan.report import estimate

    quiet()
    plans, rows, total, units = {}, [], 0.0, set()
    for item in runs:
        if item.variation not in plans:
            plans[item.variation] = estimate(item.config, options)
        hours, unit, limit, done = _remaining(item, plans[item.variation])
        total += hours
        units.add(unit)
        rows.append([str(item.directory.path), f"{limit:g} {unit}", f"{done:g} {unit}", f"{hours:.3f}"])
    print(aligned(("run", "limit", "done", "device hours"), rows))
    left = f"{total:.3f} device hours left, without validation and evaluation"
    if "s" in units:
        most = "" if all(plan.rate for plan in plans.values()) else "at most "
        left = f"{most}{total:.3f} device hours left, without evaluation; seconds include validation"
    unknown = "hours are unknown; give --images_per_s, or run this where the devices are"
    print(f"{len(runs)} runs: {unknown if math.isinf(total) else left}")
    return 0


def _remaining(item: SuiteRun, plan: "Estimate") -> tuple[float, str, float, float]:
    """Return the device hours left, then unit, value and progress of the limit that ends the run first."""
    is_complete, step, seconds = _progress(item)
    training = plan.training
    hours, by_time = training.remaining(plan.rate, step, seconds)
    hours = 0.0 if is_complete else hours * training.devices
    return (hours, "s", training.max_seconds, round(seconds)) if by_time else (hours, "steps", training.steps, step)


def _submit(suite: Suite, runs: list[SuiteRun], todo: dict[str, SuiteRun], options: argparse.Namespace) -> int:
    """Submit one array with a task per incomplete run, numbered in the order of all runs."""
    from aim_lightning.cli.commands.slurm import submit

    configs = {index: item.config for index, item in enumerate(runs) if item.directory.run in todo}
    if configs:
        array = replace(runs[0].config, values={**runs[0].config.values, "run": suite.path.stem})
        submit(array, configs, argparse.Namespace(**vars(options), parallel=options.jobs, allow_changes=False))
    if not options.dry:
        log("after the jobs, the same command without --slurm evaluates and writes the table")
    return 0
