"""Render the job script from the template job.sbatch."""

import re
import shlex
from pathlib import Path

from aim_lightning.cluster.job_plan import JobPlan
from aim_lightning.cluster.requeue import REFUSED, USER_ERROR

TEMPLATE = Path(__file__).with_name("job.sbatch").read_text(encoding="utf-8")
# SLURM may signal the job, and so this shell, while scontrol runs.
RENDEZVOUS = """MASTER_ADDR=$(trap '' TERM USR1; scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((15000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT"""


def render(plan: JobPlan) -> str:
    """Return the text of job.sbatch; equal plans give equal text."""
    options, torchrun = plan.options, plan.options.launcher == "torchrun"
    interpreter = f'{options.container} "$python"' if options.container else '"$python"'
    fit = " ".join(['-m aim_lightning fit --config "$config"', *map(shlex.quote, plan.fit_options)])
    training = f"{interpreter} {fit}"
    if torchrun:
        ranks = f"--nnodes={plan.nodes} --nproc-per-node={plan.devices} --node-rank=$SLURM_NODEID"
        ranks += " --log-dir=/dev/null"  # without it torchrun leaves an empty directory in /tmp
        launcher = f"torch.distributed.run {ranks} --master-addr=$MASTER_ADDR --master-port=$MASTER_PORT"
        # Each task's own shell expands SLURM_NODEID.
        training = f"bash -c {shlex.quote(f'exec {interpreter} -m {launcher} {fit}')}"
    modules = ["module purge", f"module load {shlex.join(options.modules)}"] if options.modules else []
    exports = [f"export {name}={shlex.quote(value)}" for name, value in options.environment.items()]
    file = "job-${SLURM_ARRAY_TASK_ID}.yaml" if plan.is_array else plan.tasks[0].file
    values = {
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(plan)),
        "working_directory": shlex.quote(str(plan.working_directory)),
        "setup": "\n".join([*modules, *options.setup, *exports]),
        "config": f"{shlex.quote(str(plan.directory))}/{file}",
        "python": shlex.quote(options.python or plan.python),
        "interpreter": interpreter,
        "user_error": USER_ERROR,
        "refused": REFUSED,
        "rendezvous": RENDEZVOUS if torchrun else "",
        "cpus_per_task": plan.cpus_per_rank * plan.ranks_per_task,
        "srun": " ".join(options.srun),
        "training": training,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: str(values[match[1]]), TEMPLATE)


def directives(plan: JobPlan) -> list[str]:
    """Return the options after #SBATCH."""
    options = plan.options
    indices = ",".join(str(task.index) for task in plan.tasks) + (f"%{plan.parallel}" if plan.parallel else "")
    named = {
        "job-name": plan.name,
        "nodes": plan.nodes,
        "ntasks-per-node": plan.devices // plan.ranks_per_task,
        "cpus-per-task": plan.cpus_per_rank * plan.ranks_per_task,
        **{name: getattr(options, name) for name in ("time", "partition", "account", "qos", "constraint")},
        "mem": options.memory,
        "array": indices if plan.is_array else None,
        "output": plan.directory / ("slurm-%A_%a.log" if plan.is_array else "slurm-%j.log"),
        "open-mode": "append",
        "signal": f"USR1@{options.signal_lead}",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in named.items() if value is not None]
    gpus = [options.gpu_request.format(gpus=plan.devices)] if plan.gpus else []
    return [*lines, "--requeue", *gpus, *(line.strip().removeprefix("#SBATCH").strip() for line in options.directives)]
