"""Make the plan of a job from the configuration and the options of `slurm submit`."""

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path

from aim_lightning.cli.arguments import Arguments, split
from aim_lightning.cli.build.input_checks import check_files
from aim_lightning.cli.config import SECTIONS, Config, read_and_check
from aim_lightning.cluster.job_plan import JobPlan, Task, array_indices
from aim_lightning.cluster.job_registry import read_timings
from aim_lightning.data.stream import BatchPlan
from aim_lightning.runs.resume_policy import decide, differences, refusal
from aim_lightning.utils.errors import UserError


def make_plan(config: Config, configs: dict[int | None, Config], options: argparse.Namespace) -> JobPlan:
    """Return the plan of the job.

    Args:
        config: of the run, or of the array, whose directory is that of its run.
        configs: of the tasks, as `task_configs` returns them.
        options: of the command line.

    Raises:
        UserError: an error that would otherwise appear in the job.
    """
    directory, trainer = config.run_directory, config.trainer
    for task in configs.values():
        check_files("fit", task.values)
        _check_ranks(task, options)
        _check_shared(config, task)
        _check_unchanged(task, options.allow_changes)
    return JobPlan(
        name=f"{directory.experiment}/{directory.run}",
        directory=directory.path,
        tasks=[Task(index, task.run_directory.run) for index, task in configs.items()],
        nodes=trainer.get("num_nodes", 1),
        devices=trainer["devices"],
        gpus=trainer.get("accelerator") != "cpu",
        workers=config.init_args("data").get("num_workers", 0),
        options=config.cluster,
        parallel=options.parallel,
        timings=read_timings(directory.path, *(task.run_directory.path for task in configs.values())),
        fit_options=["--allow_changes", "true"] if options.allow_changes else [],
    )


def task_configs(config: Config, options: argparse.Namespace) -> dict[int | None, Config]:
    """Return the configurations of the tasks by index in the array; the index is None without an array."""
    if options.seeds and options.sweep:
        raise UserError("--seeds and --sweep exclude each other; put --seed_everything into the lines of --sweep")
    if options.seeds:
        changes = {index: [("seed_everything", str(index))] for index in array_indices(options.seeds)}
    elif options.sweep:
        changes = dict(enumerate(_lines(Path(options.sweep))))
    else:
        return {None: config}
    # Composed again per task, so that interpolations of the changed keys change too.
    run, common = config.values["run"], options.arguments
    return {
        index: read_and_check(Arguments(common.configs, [*common.overrides, *items, ("run", f"{run}-{index}")]))
        for index, items in changes.items()
    }


def _lines(path: Path) -> list[list[tuple[str, str]]]:
    """Return the overrides of each line, without empty lines and comments."""
    if not path.is_file():
        raise UserError(f"--sweep {path} does not exist; it contains one line of options per task")
    result = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            arguments = split(shlex.split(line), plain=SECTIONS)
        except ValueError as error:  # an open quotation
            raise UserError(f"{path}:{number}: {error}; quote values as in a shell") from None
        if arguments.rest or arguments.configs or not arguments.overrides:
            raise UserError(f"{path}:{number}: write options such as --model.optimizer.base_learning_rate 1e-3")
        result.append(arguments.overrides)
    if not result:
        raise UserError(f"--sweep {path} contains no line of options")
    return result


def _check_ranks(config: Config, options: argparse.Namespace) -> None:
    """Check that the ranks are set, can work together and divide the global batch."""
    trainer, data = config.trainer, config.init_args("data")
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if not isinstance(devices, int) or devices < 1:
        raise UserError(f"trainer.devices is {devices!r}; a job needs the number of ranks per node: GPUS=4")
    # GPUS=1 also sets trainer.devices: a job of CPU ranks must be requested by name.
    requested = devices * nodes > 1 or "trainer.devices" in dict(options.arguments.overrides)
    if requested and trainer.get("strategy", "auto") == "auto" and trainer.get("accelerator") == "cpu":
        fix = "set --trainer.accelerator gpu, or --trainer.strategy ddp for ranks on CPUs"
        raise UserError(f"trainer.accelerator is 'cpu'; {fix}")
    if "global_batch_size" in data:
        BatchPlan.make(data["global_batch_size"], devices * nodes, data.get("max_device_batch_size"))


def _check_unchanged(config: Config, allow_changes: bool) -> None:
    """Refuse the changes that `fit` would refuse after the job has waited; tensors are not read."""
    directory = config.run_directory
    if directory.checkpoints():
        from aim_lightning.runs.history import read_content  # imports torch

        decision = decide(read_content(directory, config.values, verify=False), allow_changes)
        if decision.action == "refuse":
            raise UserError(refusal(directory, decision))


def _check_shared(config: Config, task: Config) -> None:
    """Check that the options of the job script are equal for all tasks of an array."""
    for line in differences(_script_options(config), _script_options(task)).values():
        fact = f"{task.values['run']}: {line}, but the tasks of an array share one job script"
        raise UserError(f"{fact}; submit a task that needs another one as a separate run")


def _script_options(config: Config) -> dict:
    """Return the options that the job script and the records of its jobs depend on."""
    defaults, trainer = {"devices": "auto", "num_nodes": 1, "accelerator": "auto"}, config.trainer
    return {
        "experiment": config.values["experiment"],  # its directory records which jobs are cancelled
        "trainer": {name: trainer.get(name, default) for name, default in defaults.items()},
        "data": {"num_workers": config.init_args("data").get("num_workers", 0)},
        "cluster": asdict(config.cluster),
    }
