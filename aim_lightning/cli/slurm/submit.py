"""From the configuration and the options of `slurm submit` to a plan; an array gets a configuration a task."""

import argparse
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from aim_lightning.cli.arguments import Arguments, split
from aim_lightning.cli.build.input_checks import check_files
from aim_lightning.cli.commands.config import run_directory
from aim_lightning.cli.config import Config, read_and_check
from aim_lightning.cli.sections import SECTIONS
from aim_lightning.cluster import step_timings
from aim_lightning.cluster.job_plan import JobPlan, Task, array_indices
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.config.yaml import dump
from aim_lightning.data.stream import BatchPlan
from aim_lightning.runs.resume_policy import decide, differences, refusal
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text


def make_plan(document: Config, options: argparse.Namespace) -> tuple[JobPlan, list[Config]]:
    """The plan, and the document of each task.

    Raises:
        UserError: something that would go wrong in the job.
    """
    directory = run_directory(document)
    documents = _documents(document, options)
    for _, one in documents:
        check_files("fit", one.values)
        _check_ranks(one)
        _check_shared(document, one)
        _check_unchanged(one, options.allow_changes)
    trainer, data = document.values["trainer"], document.values["data"].get("init_args") or {}
    runs = [replace(directory, run=str(one.values["run"])) for _, one in documents]
    plan = JobPlan(
        name=f"{directory.experiment}/{directory.run}",
        directory=directory.path,
        tasks=[_task(directory.path, index, one) for index, one in documents],
        nodes=trainer.get("num_nodes", 1),
        devices=trainer["devices"],
        gpus=trainer.get("accelerator") not in ("cpu",),
        workers=data.get("num_workers", 0),
        options=ClusterOptions(**document.values["cluster"]),
        where=Path.cwd(),
        python=sys.executable,
        parallel=options.parallel,
        timings=step_timings.longest([directory.path, *(run.path for run in runs)]),
        fit_options=["--allow_changes", "true"] if options.allow_changes else [],
    )
    return plan, [one for _, one in documents]


def _task(directory: Path, index: int | None, document: Config) -> Task:
    return Task(index, document.values["run"], directory / ("job.yaml" if index is None else f"job-{index}.yaml"))


def _documents(document: Config, options: argparse.Namespace) -> list[tuple[int | None, Config]]:
    """(index in the array, document); one without index where there is no array."""
    if options.seeds and options.sweep:
        raise UserError("--seeds and --sweep exclude each other; put --seed_everything into the lines of --sweep")
    if options.parallel is not None and options.parallel < 1:
        raise UserError(f"--parallel is {options.parallel}; it must be at least 1")
    if options.seeds:
        given = {index: [("seed_everything", str(index))] for index in array_indices(options.seeds)}
    elif options.sweep:
        given = dict(enumerate(_lines(Path(options.sweep))))
    else:
        return [(None, document)]
    run = document.values["run"]
    return [(i, _compose(options.given, [*more, ("run", f"{run}-{i}")])) for i, more in given.items()]


def _compose(given: Arguments, more: list[tuple[str, str]]) -> Config:
    return read_and_check(Arguments(given.configs, [*given.overrides, *more]))


def _lines(path: Path) -> list[list[tuple[str, str]]]:
    """Overrides a line; empty lines and comments do not count."""
    if not path.is_file():
        raise UserError(f"--sweep {path} does not exist; it holds a line of options a task")
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        arguments = split(shlex.split(line), plain=SECTIONS)
        if arguments.rest or arguments.configs or not arguments.overrides:
            raise UserError(f"{path}:{number}: write options such as --model.optimizer.base_learning_rate 1e-3")
        found.append(arguments.overrides)
    if not found:
        raise UserError(f"--sweep {path} holds no line of options")
    return found


def _check_ranks(document: Config) -> None:
    """As many ranks as the configuration says, and a global batch that they can share."""
    trainer, data = document.values["trainer"], document.values["data"].get("init_args") or {}
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if not isinstance(devices, int) or devices < 1:
        raise UserError(f"trainer.devices is {devices!r}; a job needs the number of ranks a node: GPUS=4")
    if devices * nodes > 1 and trainer.get("strategy", "auto") == "auto" and trainer.get("accelerator") == "cpu":
        raise UserError("trainer.strategy is 'auto', which takes one rank on processors; set --trainer.strategy ddp")
    if "global_batch_size" in data:
        BatchPlan.make(data["global_batch_size"], devices * nodes, data.get("max_device_batch_size"))


def _check_unchanged(document: Config, allow_changes: bool) -> None:
    """What `fit` would refuse, now instead of after the job has waited; tensors stay on the disk."""
    directory = run_directory(document)
    if not directory.checkpoints():
        return  # before torch is imported
    from aim_lightning.runs.history import read_content

    decision = decide(read_content(directory, document.values, verify=False), allow_changes)
    if decision.action == "refuse":
        raise UserError(refusal(directory, decision))


def _check_shared(document: Config, task: Config) -> None:
    """All tasks of an array have one job script: what it is made of cannot differ between them."""
    for line in differences(_for_script(document.values), _for_script(task.values)).values():
        raise UserError(
            f"{task.values['run']}: {line}, but the tasks of an array share one job script; "
            "submit what needs another one as a run of its own"
        )


def _for_script(values: dict) -> dict:
    """What the job script is made of."""
    trainer, data = values["trainer"], values["data"].get("init_args") or {}
    names = {"devices": "auto", "num_nodes": 1, "accelerator": "auto"}
    return {
        "trainer": {name: trainer.get(name, default) for name, default in names.items()},
        "data": {"num_workers": data.get("num_workers", 0)},
        "cluster": asdict(ClusterOptions(**values["cluster"])),
    }


def write_configurations(plan: JobPlan, documents: list[Config]) -> None:
    """Freeze what was submitted: editing an experiment must not change a job that waits or comes back."""
    for task, document in zip(plan.tasks, documents, strict=True):
        write_text(task.config, dump(document.values))
