"""Renders the job script job.sbatch."""

import shlex

from aim_lightning.cluster.job_plan import JobPlan
from aim_lightning.cluster.requeue import REFUSED, USER_ERROR

# Blocks a signal until Python has installed its handlers. With an older env (coreutils before 8.31), SIGUSR1 is ignored
# until then instead of ending the process. SIGUSR2, which requests stacks, never ends a process without a handler, such
# as torchrun's agent.
HOLD = (
    'sh -c \'trap "" USR1 USR2; env --block-signal=USR1 true 2>/dev/null && '
    'exec env --default-signal=USR1,USR2 --block-signal=USR1,USR2,TERM "$@"; exec "$@"\' -'
)
# SLURM sends SIGTERM to every process of a job that it requeues, and so to the shell that calls scontrol.
DEAF = "trap '' TERM USR1"
# A container may lack scontrol: `slurm ended` then requests a requeue by exit code 75 or, after a preemption, 143.
# If python exists only in srun's container, `slurm ended` fails and the exit code of training decides. Crashes are not
# requeued then, since nothing counts the starts.
OUTSIDE = [
    "decision=$?",
    "case $decision in 0) exit $code ;; 75 | 143) ;; *)",
    '  echo "slurm ended gave no answer (exit code $decision); exit code $code of training decides"',
    "  decision=$code ;;",
    "esac",
    "case $decision in",
    "  75 | 138) sign=JobState=RUNNING ;;",
    "  143) sign='JobState=RUNNING.* PreemptTime=[0-9]' ;;",
    "  *) exit $code ;;",
    "esac",
    "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} job=${job:-$SLURM_JOB_ID}",
    'if scontrol show job "$job" | tr \'\\n\' \' \' | grep -Eq "$sign"; then scontrol requeue "$job"; fi',
    "exit $code",
]
TORCHRUN = (
    "-m torch.distributed.run --nnodes={nodes} --nproc-per-node={devices} --node-rank=$SLURM_NODEID "
    "--master-addr=$MASTER_ADDR --master-port=$MASTER_PORT -m aim_lightning"
)


def render(plan: JobPlan) -> str:
    """Return the text of job.sbatch; equal plans give equal text."""
    parts = [_head(plan), _preparation(plan), _start(plan), _training(plan), _end(plan)]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _head(plan: JobPlan) -> list[str]:
    return ["#!/bin/bash", *(f"#SBATCH {line}" for line in directives(plan))]


def directives(plan: JobPlan) -> list[str]:
    """Return the options after #SBATCH."""
    options, torchrun = plan.options, plan.options.launcher == "torchrun"
    ranks = plan.devices if torchrun else 1  # per task
    log = plan.directory / ("slurm-%A_%a.log" if plan.is_array else "slurm-%j.log")
    named = {
        "job-name": plan.name,
        "nodes": plan.nodes,
        "ntasks-per-node": plan.devices // ranks,
        "cpus-per-task": plan.cpus_per_task * ranks,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "mem": options.memory,
        "array": _array(plan) if plan.is_array else None,
        "output": log,
        "open-mode": "append",
        "signal": f"USR1@{options.signal_lead}",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in named.items() if value is not None]
    gpus = [options.gpu_request.format(gpus=plan.devices)] if plan.gpus else []
    extra = [line.strip().removeprefix("#SBATCH").strip() for line in options.directives]
    return [*lines, "--requeue", *gpus, *extra]


def _array(plan: JobPlan) -> str:
    indices = ",".join(str(task.index) for task in plan.tasks)
    return indices + (f"%{plan.parallel}" if plan.parallel else "")


def _preparation(plan: JobPlan) -> list[str]:
    options = plan.options
    return [
        "# Written by `make slurm`, which writes it again: change the configuration, not this file.",
        f"cd {shlex.quote(str(plan.where))} || exit 2",
        *(["module purge", f"module load {' '.join(map(shlex.quote, options.modules))}"] if options.modules else []),
        *options.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in options.environment.items()),
        f"config={_config(plan)}",
        f"python={shlex.quote(options.python or plan.python)}",
        "trap : TERM USR1 # training acts on them; this script stays to the end",
    ]


def _config(plan: JobPlan) -> str:
    path = plan.tasks[0].config
    if not plan.is_array:
        return shlex.quote(str(path))
    return f"{shlex.quote(str(path.parent))}/job-${{SLURM_ARRAY_TASK_ID}}.yaml"


def _start(plan: JobPlan) -> list[str]:
    return [
        "# Stops a job that restarts without progress or was cancelled; other failures of this line are ignored.",
        f'{_python(plan)} -m aim_lightning slurm started --config "$config"',
        f"code=$?; if [ $code = {USER_ERROR} ] || [ $code = {REFUSED} ]; then exit $code; fi",
    ]


def _training(plan: JobPlan) -> list[str]:
    ranks = plan.devices if plan.options.launcher == "torchrun" else 1
    # --wait=0: after a stop, rank 0 still calls SLURM when the others have ended, whatever the site's WaitTime is.
    # Since SLURM 22.05, srun does not inherit --cpus-per-task from sbatch.
    words = [
        "srun",
        "--kill-on-bad-exit=1",
        "--wait=0",
        f"--cpus-per-task={plan.cpus_per_task * ranks}",
        *plan.options.srun,
    ]
    fit = " ".join(["fit", '--config "$config"', *map(shlex.quote, plan.fit_options)])
    if plan.options.launcher == "srun":
        return [f"{' '.join(words)} {HOLD} {_python(plan)} -m aim_lightning {fit}", "code=$?"]
    launch = TORCHRUN.format(nodes=plan.nodes, devices=plan.devices)
    return [
        f'MASTER_ADDR=$({DEAF}; scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((15000 + SLURM_JOB_ID % 10000))",
        "export MASTER_ADDR MASTER_PORT config python",
        f"{' '.join(words)} {HOLD} bash -c {shlex.quote(f'exec {_python(plan)} {launch} {fit}')}",
        "code=$?",
    ]


def _end(plan: JobPlan) -> list[str]:
    return [
        "# Requeues the job where training could not do it itself: after a crash, a hang or a lost rank.",
        DEAF,
        f'{_python(plan)} -m aim_lightning slurm ended --config "$config" --code $code',
        *OUTSIDE,
    ]


def _python(plan: JobPlan) -> str:
    return f'{plan.options.container} "$python"' if plan.options.container else '"$python"'
