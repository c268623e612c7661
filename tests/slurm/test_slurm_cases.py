"""Every way in which a job is interrupted, on a real cluster of two nodes; marked `long`."""

import re
import shutil
import signal
import sys

import pytest
from conftest import ROOT
from slurm_cluster import HERE, Run

from aim_lightning.cluster.slurm_api import parse_jobs

pytestmark = pytest.mark.long
FAST = ("--callbacks.probe.pause", "0")


def break_at(step: int, **options) -> list:
    """Return the options with which the probe breaks the training."""
    options["break_at"] = step
    return [*FAST, *(word for name in options for word in (f"--callbacks.probe.{name}", options[name]))]


def stops(run, name="SIGUSR1") -> list[int]:
    return [int(step) for step in re.findall(rf"{name}: stopping before the next batch, at step (\d+)", run.log)]


# Phase of the signal ------------------------------------------------------------------------------------------------


def case_one_rank_gets_the_signal(cluster):
    run = cluster.submit("lagging", "--callbacks.probe.pause_of_rank", "{'1': 0.5}", nodes=2)
    run.reaches("batch", 4, rank=1)
    run.send_to_rank(1)  # rank 0 learns it from rank 1 alone
    return run.ends()


def in_phase(phase: str):
    """Return a scenario with a warning in the middle of a phase."""
    options = (*FAST, "--callbacks.probe.long", f"{{{phase}: 60}}")
    return lambda cluster: cluster.submit(phase, *options).interrupt(phase)


case_a_signal_during_validation = in_phase("validation")
case_a_signal_during_sampling = in_phase("sampling")
case_a_signal_while_a_checkpoint_is_written = in_phase("checkpoint")


PHASES = [
    ("a_signal_during_validation", 6),
    ("a_signal_during_sampling", 6),
    ("a_signal_while_a_checkpoint_is_written", 5),  # written just before step 5, after the agreement
]


@pytest.mark.parametrize(("case", "step"), PHASES, indirect=["case"])
def test_training_stops_after_the_phase_of_the_signal(case, step):
    assert stops(case) == [step]
    case.assert_equals_uninterrupted()


def case_a_signal_during_the_restore(cluster):
    run = cluster.submit("restore", "--callbacks.probe.long", "{restore: 60}")
    run.reaches("batch", 6)
    run.send("USR1")
    return run.interrupt("restore", 0, 1)


def test_a_signal_during_the_restore(case):
    first, second = stops(case)
    assert first == second
    case.assert_logged("start 2 of 3 without a new checkpoint")
    case.assert_equals_uninterrupted(restarts=2)


# Source of the signal -----------------------------------------------------------------------------------------------


def preempted(cluster, partition: str):
    options = ("--cluster.partition", partition, "--cluster.directives", "['--exclusive']")
    run = cluster.submit(partition, *options, nodes=2)
    run.reaches("batch", 4)
    intruder = ("--partition=high", "--nodes=2", "--exclusive", "--time=5", "--output=/dev/null", "--wrap", "sleep 2")
    cluster.sh("sbatch", *intruder)
    return run.ends()


def case_preemption_without_and_with_grace(cluster):
    """Both use the nodes n3 and n4, one after the other."""
    return [preempted(cluster, partition) for partition in ("low", "grace")]


def test_preemption_without_and_with_grace(case):
    for run, reason in zip(case, ("SLURM has already put it back into the queue", "it was preempted"), strict=True):
        (step,) = stops(run, "SIGTERM")
        run.assert_logged(f"job {run.job} is requeued: {reason}", f"training from step {step} ")
        run.assert_equals_uninterrupted()


def case_the_warning_before_a_real_time_limit(cluster):
    """SLURM warns up to half a minute early: 90 to 120 s after the start; the pauses alone take 132 s."""
    slow = ("--cluster.time", "'00:03:00'", "--cluster.signal_lead", 60, "--callbacks.probe.pause", 6)
    return after_one_limit(cluster.submit("warned_by_slurm", *slow))


def after_one_limit(run):
    """Give the second start enough time on any machine, and wait for its end."""
    run.until(lambda: run.info.restarts == 1)
    run.cluster.sh("scontrol", "update", f"jobid={run.job}", "timelimit=60")
    return run.ends()


def case_a_time_limit_without_a_warning(cluster):
    """Use a job script without --signal: only SIGTERM and KillWait, 120 to 150 s after the start."""
    options = ("--cluster.time", "'00:02:00'", "--cluster.signal_lead", 1, "--callbacks.probe.pause", 8)
    run = cluster.submit("timed_out", *options)
    cluster.sh("scancel", run.job)
    script = run.directory / "job.sbatch"
    script.write_text(re.sub(r"#SBATCH --signal.*\n", "", script.read_text()))
    run.job = cluster.sh("sbatch", "--parsable", script).strip()
    return after_one_limit(run)


def test_a_time_limit_without_a_warning(case):
    case.assert_logged(f"job {case.job} is requeued: its time ran out")
    case.assert_equals_uninterrupted()


def case_a_user_sends_sigterm(cluster):
    return cluster.submit("ended_by_hand").interrupt("batch", 2, name="TERM", state="FAILED")


def test_a_user_sends_sigterm(case):
    assert case.restarts == 0
    case.assert_logged("SIGTERM came without preemption or time limit; to go on: sbatch ")


# Failures -----------------------------------------------------------------------------------------------------------


def case_a_node_dies(cluster):
    run = cluster.submit("node", "--cluster.partition", "fragile", nodes=2)
    run.reaches("batch", 6, rank=1)
    cluster.break_node("n6", run.trace(1)[-1][3])
    run.until(lambda: run.info.restarts == 1)
    cluster.repair_node("n6")
    return run.ends()


def test_a_node_dies(case):
    case.assert_logged("training from step 4 ")
    case.assert_equals_uninterrupted()


def case_a_rank_is_killed(cluster):
    return cluster.submit("killed", *break_at(7, how="kill", break_rank=1), nodes=2).ends()


def test_a_rank_is_killed(case):
    case.match(rf"training ended with exit code \d+; job {case.job} is requeued: its processes ended")
    case.assert_equals_uninterrupted()


def case_a_crash_loop_ends(cluster):
    limit = ("--cluster.max_starts_without_progress", 2)
    return cluster.submit("loop", *break_at(6, how="raise", break_starts=99), *limit).ends("FAILED")


def test_a_crash_loop_ends(case):
    assert case.restarts == 3 and case.log.count("broken on purpose") >= 3
    case.assert_logged(f"job {case.job} has started 2 times at step 4 without reaching a new checkpoint")


def case_a_rank_that_hangs(cluster):
    return cluster.submit("hangs", *break_at(7, break_rank=1), "--cluster.hang_seconds", 60, nodes=2).ends()


def test_a_rank_that_hangs(case):
    case.match(r"error: node n\d, rank 1: no progress for 60 s in the batch after step 7; the stacks")
    case.match(r'File ".*slurm_probe.py", line \d+ in _break')
    case.assert_logged(f"job {case.job} is requeued: its processes ended")
    case.assert_equals_uninterrupted()


def case_a_rank_that_hangs_inside_a_library(cluster):
    return cluster.submit("stuck", *break_at(7, how="stuck"), "--cluster.hang_seconds", 45).ends()


def test_a_rank_that_hangs_inside_a_library(case):
    case.assert_logged("Timeout (0:01:30)!")
    case.match(r'File ".*slurm_probe.py", line \d+ in _break')
    case.assert_equals_uninterrupted()


# Several jobs -------------------------------------------------------------------------------------------------------


def case_two_jobs_on_one_run(cluster):
    hold = cluster.workspace / "runs/tiny/twice/hold"  # until the second job has ended
    hold.parent.mkdir(parents=True)
    hold.touch()
    run = cluster.submit("twice", *FAST)
    run.reaches("batch")
    again = cluster.aim("slurm", "submit", "--run", "twice", "--trainer.num_nodes", 1, check=False)
    other = "n2" if run.info.nodes == "n1" else "n1"
    second = cluster.sh("sbatch", "--parsable", f"--nodelist={other}", run.directory / "job.sbatch").strip()
    intruder = Run(cluster, "twice", second)
    try:
        intruder.ends("FAILED")
    finally:
        hold.unlink()
    return run.ends(), again, intruder


def test_two_jobs_on_one_run(case):
    run, again, intruder = case
    assert f"has job {run.job} already (RUNNING)" in again
    intruder.match(rf"error: .*twice is being trained by process \d+ on n\d \(job {run.job}\)")
    run.assert_equals_uninterrupted(restarts=0)


def case_an_array_of_seeds(cluster):
    text = cluster.aim("slurm", "submit", "--run", "seeds", "--trainer.num_nodes", 1, "--seeds", "3-4")
    number = re.search(r"^job (\d+)", text, re.M)[1]
    first, last = (Run(cluster, f"seeds-{i}", f"{number}_{i}", logs="seeds") for i in (3, 4))
    # The plain number of the last task is that of the whole array: nothing else may be requeued.
    return last.interrupt("batch", 4), first.ends()


def test_an_array_of_seeds(case):
    last, first = case
    assert last.restarts == 1
    first.assert_equals_uninterrupted(restarts=0)  # the experiment's own seed
    weights, expected = (run.result()[0] for run in (last, first))
    assert any(not weights[name].equal(expected[name]) for name in weights)


SUITE = """
experiment: tiny.yaml
variations: {changed: {model.label_dropout: 0.5}, same: {}}
seeds: [3]
"""


def case_an_array_of_a_suite(cluster):
    path = cluster.workspace / "suite.yaml"
    path.write_text(SUITE)
    options = ["--slurm", "--config", cluster.workspace / "cluster.yaml", "--trainer.num_nodes", 1]
    text = cluster.sh(sys.executable, "-m", "aim_lightning", "suite", path, *options)
    number = re.search(r"^job (\d+)", text, re.M)[1]
    names = enumerate(("changed", "same"))
    changed, same = (Run(cluster, f"suite-{name}-3", f"{number}_{i}", logs="suite") for i, name in names)
    return same.interrupt("batch", 4), changed.ends()


def test_an_array_of_a_suite(case):
    same, changed = case
    same.assert_equals_uninterrupted()  # it is the experiment itself
    weights, expected = (run.result()[0] for run in (changed, same))
    assert changed.restarts == 0 and any(not weights[name].equal(expected[name]) for name in weights)


def case_a_container_without_scontrol(cluster):
    return cluster.submit("contained", "--cluster.container", "env PATH=/nowhere").interrupt("batch", 5)


def test_a_container_without_scontrol(case):
    case.assert_logged(f"job {case.job} is left to job.sbatch: the command scontrol does not exist")
    case.assert_equals_uninterrupted()


def case_torchrun_is_warned(cluster):
    return cluster.submit("elastic", "--cluster.launcher", "torchrun", nodes=2).interrupt("batch", 5)


ONE_STOP = ["one_rank_gets_the_signal", "the_warning_before_a_real_time_limit", "torchrun_is_warned"]


@pytest.mark.parametrize("case", ONE_STOP, indirect=True)
def test_all_ranks_stop_once(case):
    assert len(stops(case)) == 1
    case.assert_equals_uninterrupted()


# Tokenizing --------------------------------------------------------------------------------------------------------


def case_tokenize_on_two_nodes(cluster):
    """Run the example of docs/slurm.md with a requeue in the middle, and one process without SLURM."""
    one, two = cluster.workspace / "tokens_one", cluster.workspace / "tokens_two"
    command = [
        sys.executable,
        "-m",
        "aim_lightning",
        "tokenize",
        "--config",
        HERE / "tokenize.yaml",
        "--batch_size",
        20,
    ]
    command = [str(word) for word in (*command, "--rows_per_shard", 100, "--data.out")]
    lines = (f"cd {ROOT}", "export TOKENIZER_PAUSE=0.1", f"srun {' '.join(command)} {two}")
    run = cluster.script("tokenize", "#SBATCH --requeue --open-mode=append", *lines)
    run.until(lambda: len(list((two / "train" / "finished").glob("*.json"))) > 3)
    cluster.sh("scontrol", "requeue", run.job)
    run.ends()
    cluster.sh(*command, one)
    return run, two, one


def test_tokenize_on_two_nodes(case):
    run, *directories = case
    assert run.restarts == 1
    run.assert_logged("token shards: ")
    files, expected = (
        {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        for directory in directories
    )
    assert len([path for path in files if path.suffix == ".tar"]) == 40 and files == expected


# Before the first batch --------------------------------------------------------------------------------------------

FIT = f"{sys.executable} -m aim_lightning fit --config {{experiment}} --config {{section}} --trainer.num_nodes 2"


def preflight(cluster, name: str, line: str):
    fit = FIT.format(experiment=cluster.experiment, section=cluster.workspace / "cluster.yaml") + f" --run {name}"
    run = cluster.script(name, f"cd {ROOT}", line.replace("FIT", fit))
    run.ends("FAILED")
    return run.log


def case_preflight_names_the_node(cluster):
    old = cluster.workspace / "old"
    shutil.copytree(ROOT / "aim_lightning", old / "aim_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    with (old / "aim_lightning/utils/random.py").open("a") as file:
        file.write("# an older checkout\n")
    for directory in ("here", "there"):
        (cluster.workspace / directory).mkdir()
    second = '[ "$SLURM_PROCID" = 1 ] &&'
    lines = {
        "world": "srun FIT --trainer.num_nodes 1",
        "configuration": "srun bash -c 'FIT --model.label_dropout 0.$((SLURM_PROCID + 1))'",
        "version": f"srun bash -c '{second} cd {old} && export PYTHONPATH={old}:$PYTHONPATH; FIT'",
        "directory": f"srun bash -c 'cd {cluster.workspace}/here; {second} cd ../there; FIT --runs_root mine'",
    }
    return {
        name: preflight(cluster, name, f"export PYTHONPATH={ROOT}:$PYTHONPATH; {line}") for name, line in lines.items()
    }


FAULTS = [
    ("world", r"node n1: srun started 2 tasks on 2 nodes; trainer.num_nodes 1 x trainer.devices 1 needs 1 tasks on 1"),
    ("configuration", r"node n2, rank 1: its configuration differs from that of node n1 \(rank 0\)"),
    ("version", r"node n2, rank 1: aim_lightning source is \w{12}, on node n1 it is \w{12}"),
    ("directory", r"node n2, rank 1: mine/tiny/directory is not the directory that node n1 writes to"),
]


@pytest.mark.parametrize(("name", "message"), FAULTS)
def test_preflight_names_the_node(cases, name, message):
    log = cases["preflight_names_the_node"].result()[name]
    assert re.search(f"^error: {message}", log, re.M), log
    assert len(re.findall("^error: ", log, re.M)) == 1, log


def test_stacks_on_demand(cluster):
    """SIGUSR2 prints the stacks of every rank without stopping it."""
    run = cluster.submit("asked")
    run.reaches("batch", 1)
    run.send("USR2")
    run.until(lambda: "most recent call first" in run.log)
    cluster.aim("slurm", "cancel", "--run", "asked")
    assert parse_jobs(cluster.sh("scontrol", "show", "job", run.job))[0].id == run.job
    assert signal.SIGUSR2.name not in run.log
