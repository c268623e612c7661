"""Every way in which a job is interrupted, each on a real cluster of two nodes. Behind the marker `long`."""

import re
import shutil
import signal
import sys

import pytest
from conftest import ROOT

from aim_lightning.cluster.slurm_api import parse_jobs

pytestmark = pytest.mark.long
FAST = ("--callbacks.probe.pause", "0")


def stopped_at(run, name="SIGUSR1") -> list[int]:
    return [int(step) for step in re.findall(rf"{name}: stopping before the next batch, at step (\d+)", run.log)]


# Where the signal arrives ------------------------------------------------------------------------------------------


def case_one_rank_gets_the_signal_while_the_other_lags(cluster):
    run = cluster.submit("lagging", "--callbacks.probe.pause_of_rank", "{'1': 0.5}", nodes=2)
    run.reaches("batch", 4, rank=1)
    run.send_to_rank(1)  # rank 0 hears of it from rank 1 alone
    return run, run.ends(), cluster.reference(2)


def test_one_rank_gets_the_signal_while_the_other_lags(case):
    run, facts, reference = case
    assert facts.restarts == 1 and len(stopped_at(run)) == 1
    run.is_like(reference)


def in_phase(cluster, phase: str, *options):
    """A warning in the middle of a phase."""
    run = cluster.submit(phase, *FAST, "--callbacks.probe.long", f"{{{phase}: 60}}", *options)
    run.reaches(phase)
    run.send("USR1")
    return run, run.ends(), cluster.reference(1)


def looks_whole(case, step: int) -> None:
    """The phase was finished, its results are there, and the run stopped right after."""
    run, facts, reference = case
    assert facts.restarts == 1 and stopped_at(run) == [step]
    run.is_like(reference)


def case_a_signal_during_validation(cluster):
    return in_phase(cluster, "validation")


def test_a_signal_during_validation(case):
    looks_whole(case, 6)


def case_a_signal_during_sampling(cluster):
    return in_phase(cluster, "sampling")


def test_a_signal_during_sampling(case):
    looks_whole(case, 6)


def case_a_signal_while_a_checkpoint_is_written(cluster):
    return in_phase(cluster, "checkpoint")


def test_a_signal_while_a_checkpoint_is_written(case):
    looks_whole(case, 5)  # written just before step 5's batch: the boundary's question was already answered


def case_a_signal_during_the_restore(cluster):
    run = cluster.submit("restore", "--callbacks.probe.long", "{restore: 60}")
    run.reaches("batch", 6)
    run.send("USR1")
    run.reaches("restore", starts=1)
    run.send("USR1")
    return run, run.ends(), cluster.reference(1)


def test_a_signal_during_the_restore(case):
    run, facts, reference = case
    first, second = stopped_at(run)
    assert facts.restarts == 2 and first == second
    run.says("start 2 of 3 without a new checkpoint")
    run.is_like(reference)


# Who sends it ------------------------------------------------------------------------------------------------------


def preempted(cluster, partition: str):
    run = cluster.submit(
        partition, "--cluster.partition", partition, "--cluster.directives", "['--exclusive']", nodes=2
    )
    run.reaches("batch", 4)
    intruder = ("--partition=high", "--nodes=2", "--exclusive", "--time=5", "--output=/dev/null", "--wrap", "sleep 2")
    cluster.sh("sbatch", *intruder)
    return run, run.ends(), cluster.reference(2)


def case_preemption_without_and_with_grace(cluster):
    """Both use the nodes n3 and n4: one after the other."""
    return [preempted(cluster, partition) for partition in ("low", "grace")]


def test_preemption_without_and_with_grace(case):
    (bare, bare_facts, reference), (grace, grace_facts, _) = case
    assert bare_facts.restarts == grace_facts.restarts == 1
    bare.says(f"job {bare.job} is requeued: SLURM has already put it back into the queue")
    grace.says(f"job {grace.job} is requeued: it was preempted")
    for run in (bare, grace):
        (step,) = stopped_at(run, "SIGTERM")
        run.says(f"training from step {step} ")
        run.is_like(reference)


def case_the_warning_before_a_real_time_limit(cluster):
    """SLURM warns up to half a minute early: 90 to 120 s after the start; the pauses alone take 132 s."""
    slow = ("--cluster.time", "'00:03:00'", "--cluster.signal_lead", 60, "--callbacks.probe.pause", 6)
    run = cluster.submit("warned_by_slurm", *slow)
    after_one_limit(run)
    return run, run.ends(), cluster.reference(1)


def after_one_limit(run) -> None:
    """The second start has time enough on any machine."""
    run.until(lambda: run.facts.restarts == 1)
    run.cluster.sh("scontrol", "update", f"jobid={run.job}", "timelimit=60")


def test_the_warning_before_a_real_time_limit(case):
    run, facts, reference = case
    assert facts.restarts == 1 and len(stopped_at(run)) == 1
    run.is_like(reference)


def case_a_time_limit_without_a_warning(cluster):
    """SIGTERM and KillWait are all there is, 120 to 150 s after the start; a job script without --signal."""
    run = cluster.submit(
        "timed_out", "--cluster.time", "'00:02:00'", "--cluster.signal_lead", 1, "--callbacks.probe.pause", 8
    )
    cluster.sh("scancel", run.job)
    script = run.directory / "job.sbatch"
    script.write_text(re.sub(r"#SBATCH --signal.*\n", "", script.read_text()))
    run.job = cluster.sh("sbatch", "--parsable", script).strip()
    after_one_limit(run)
    return run, run.ends(), cluster.reference(1)


def test_a_time_limit_without_a_warning(case):
    run, facts, reference = case
    assert facts.restarts == 1
    run.says(f"job {run.job} is requeued: its time ran out")
    run.is_like(reference)


def case_somebody_sends_sigterm(cluster):
    run = cluster.submit("ended_by_hand")
    run.reaches("batch", 2)
    run.send("TERM")
    return run, run.ends("FAILED")


def test_somebody_sends_sigterm(case):
    run, facts = case
    assert facts.restarts == 0
    run.says("SIGTERM came without preemption or time limit; to go on: sbatch ")


# What breaks -------------------------------------------------------------------------------------------------------


def case_a_node_dies(cluster):
    run = cluster.submit("node", "--cluster.partition", "fragile", nodes=2)
    run.reaches("batch", 6, rank=1)
    cluster.break_node("n6", run.trace(1)[-1][3])
    run.until(lambda: run.facts.restarts == 1)
    cluster.repair_node("n6")
    return run, run.ends(), cluster.reference(2)


def test_a_node_dies(case):
    run, facts, reference = case
    assert facts.restarts == 1
    run.says("training from step 4 ")
    run.is_like(reference)


def case_a_rank_is_killed(cluster):
    broken = ("--callbacks.probe.break_at", 7, "--callbacks.probe.how", "kill", "--callbacks.probe.break_rank", 1)
    run = cluster.submit("killed", *FAST, *broken, nodes=2)
    return run, run.ends(), cluster.reference(2)


def test_a_rank_is_killed(case):
    run, facts, reference = case
    assert facts.restarts == 1
    run.matches(rf"training ended with exit code \d+; job {run.job} is requeued: its processes ended")
    run.is_like(reference)


def case_a_crash_loop_ends(cluster):
    broken = ("--callbacks.probe.break_at", 6, "--callbacks.probe.how", "raise", "--callbacks.probe.break_starts", 99)
    run = cluster.submit("loop", *FAST, *broken, "--cluster.max_starts_without_progress", 2)
    return run, run.ends("FAILED")


def test_a_crash_loop_ends(case):
    run, facts = case
    assert facts.restarts == 3 and run.log.count("broken on purpose") >= 3
    run.says(f"job {run.job} has started 2 times at step 4 without reaching a new checkpoint")


def case_a_rank_that_hangs(cluster):
    broken = ("--callbacks.probe.break_at", 7, "--callbacks.probe.break_rank", 1, "--cluster.hang_seconds", 60)
    run = cluster.submit("hangs", *FAST, *broken, nodes=2)
    return run, run.ends(), cluster.reference(2)


def test_a_rank_that_hangs(case):
    run, facts, reference = case
    assert facts.restarts == 1
    run.matches(r"error: node n\d, rank 1: no progress for 60 s in the batch after step 7; the stacks")
    run.matches(r'File ".*slurm_probe.py", line \d+ in _break')
    run.says(f"job {run.job} is requeued: its processes ended")
    run.is_like(reference)


def case_a_rank_that_hangs_inside_a_library(cluster):
    broken = ("--callbacks.probe.break_at", 7, "--callbacks.probe.how", "stuck", "--cluster.hang_seconds", 45)
    run = cluster.submit("stuck", *FAST, *broken)
    return run, run.ends(), cluster.reference(1)


def test_a_rank_that_hangs_inside_a_library(case):
    run, facts, reference = case
    assert facts.restarts == 1
    run.says("Timeout (0:01:30)!")
    run.matches(r'File ".*slurm_probe.py", line \d+ in _break')
    run.is_like(reference)


# Several jobs ------------------------------------------------------------------------------------------------------


def case_two_jobs_on_one_run(cluster):
    hold = cluster.place / "runs/tiny/twice/hold"  # until the second one has come, however long that takes
    hold.parent.mkdir(parents=True)
    hold.touch()
    run = cluster.submit("twice", *FAST)
    run.reaches("batch")
    again = cluster.aim("slurm", "submit", "--run", "twice", "--trainer.num_nodes", 1, check=False)
    other = "n2" if run.facts.nodes == "n1" else "n1"
    second = cluster.sh("sbatch", "--parsable", f"--nodelist={other}", run.directory / "job.sbatch").strip()
    intruder = type(run)(cluster, "twice", second)
    try:
        intruder.ends("FAILED")
    finally:
        hold.unlink()
    return run, again, intruder, run.ends(), cluster.reference(1)


def test_two_jobs_on_one_run(case):
    run, again, intruder, facts, reference = case
    assert f"has job {run.job} already (RUNNING)" in again
    intruder.matches(rf"error: .*twice is being trained by process \d+ on n\d \(job {run.job}\)")
    assert facts.restarts == 0
    run.is_like(reference)


def case_an_array_of_seeds(cluster):
    text = cluster.aim("slurm", "submit", "--run", "seeds", "--trainer.num_nodes", 1, "--seeds", "3-4")
    number = re.search(r"^job (\d+)", text, re.M)[1]
    first, last = (type(cluster.reference(1))(cluster, f"seeds-{i}", f"{number}_{i}", logs="seeds") for i in (3, 4))
    last.reaches("batch", 4)  # its plain number is that of the whole array: nothing else may be requeued
    last.send("USR1")
    return first, first.ends(), last, last.ends(), cluster.reference(1)


def test_an_array_of_seeds(case):
    first, first_facts, last, last_facts, reference = case
    assert (first_facts.restarts, last_facts.restarts) == (0, 1)
    first.is_like(reference)  # the experiment's own seed
    mine, theirs = (run.result()[0] for run in (last, reference))
    assert any(not mine[name].equal(theirs[name]) for name in mine)


def case_a_container_without_scontrol(cluster):
    run = cluster.submit("contained", "--cluster.container", "env PATH=/nowhere")
    run.reaches("batch", 5)
    run.send("USR1")
    return run, run.ends(), cluster.reference(1)


def test_a_container_without_scontrol(case):
    run, facts, reference = case
    assert facts.restarts == 1
    run.says(f"job {run.job} is left to job.sbatch: the command scontrol does not exist")
    run.is_like(reference)


def case_torchrun_is_warned(cluster):
    run = cluster.submit("elastic", "--cluster.launcher", "torchrun", nodes=2)
    run.reaches("batch", 5)
    run.send("USR1")
    return run, run.ends(), cluster.reference(2)


def test_torchrun_is_warned(case):
    run, facts, reference = case
    assert facts.restarts == 1 and len(stopped_at(run)) == 1
    run.is_like(reference)


# Tokenizing --------------------------------------------------------------------------------------------------------

TOKENIZE = """
experiment: tokens
images: {train: data/fashion_mnist_mini/val, val: data/fashion_mnist_mini/val, image_size: 16, resize: 16}
tokenizer: {class_path: slurm_tokenizer.SlowTokenizer}
data:
  class_path: aim_lightning.data.images.datamodule.ImageDataModule
  init_args: {images: "${images}", global_batch_size: 8}
trainer: {accelerator: cpu}
"""


def case_tokenize_on_two_nodes(cluster):
    """As docs/slurm.md has it, put back into the queue in the middle, next to one process without SLURM."""
    file, one, two = (cluster.place / name for name in ("tokenize.yaml", "tokens_one", "tokens_two"))
    file.write_text(TOKENIZE)
    command = [sys.executable, "-m", "aim_lightning", "tokenize", "--config", file, "--batch_size", 20]
    command = [str(word) for word in (*command, "--rows_per_shard", 100, "--data.out")]
    lines = (f"cd {ROOT}", "export TOKENIZER_PAUSE=0.1", f"srun {' '.join(command)} {two}")
    run = cluster.script("tokenize", "#SBATCH --requeue --open-mode=append", *lines)
    run.until(lambda: len(list((two / "train" / "finished").glob("*.json"))) > 3)
    cluster.sh("scontrol", "requeue", run.job)
    facts = run.ends()
    cluster.sh(*command, one)
    return run, facts, one, two


def test_tokenize_on_two_nodes(case):
    run, facts, one, two = case
    assert facts.restarts == 1
    run.says("token shards: ")
    mine, theirs = (
        {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        for directory in (two, one)
    )
    assert len([path for path in mine if path.suffix == ".tar"]) == 40 and mine == theirs


# Before the first batch --------------------------------------------------------------------------------------------

FIT = f"{sys.executable} -m aim_lightning fit --config {{experiment}} --config {{section}} --trainer.num_nodes 2"


def preflight(cluster, name: str, line: str):
    fit = FIT.format(experiment=cluster.experiment, section=cluster.place / "cluster.yaml") + f" --run {name}"
    run = cluster.script(name, f"cd {ROOT}", line.replace("FIT", fit))
    run.ends("FAILED")
    return run.log


def case_preflight_names_the_node(cluster):
    old = cluster.place / "old"
    shutil.copytree(ROOT / "aim_lightning", old / "aim_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    with (old / "aim_lightning/utils/random.py").open("a") as file:
        file.write("# an older checkout\n")
    for directory in ("here", "there"):
        (cluster.place / directory).mkdir()
    second = '[ "$SLURM_PROCID" = 1 ] &&'
    lines = {
        "world": "srun FIT --trainer.num_nodes 1",
        "configuration": "srun bash -c 'FIT --model.label_dropout 0.$((SLURM_PROCID + 1))'",
        "version": f"srun bash -c '{second} cd {old} && export PYTHONPATH={old}:$PYTHONPATH; FIT'",
        "directory": f"srun bash -c 'cd {cluster.place}/here; {second} cd ../there; FIT --runs_root mine'",
    }
    return {
        name: preflight(cluster, name, f"export PYTHONPATH={ROOT}:$PYTHONPATH; {line}") for name, line in lines.items()
    }


CASES = [
    ("world", r"node n1: srun started 2 tasks on 2 nodes; trainer.num_nodes 1 x trainer.devices 1 needs 1 tasks on 1"),
    ("configuration", r"node n2, rank 1: its configuration differs from that of node n1 \(rank 0\)"),
    ("version", r"node n2, rank 1: aim_lightning source is \w{12}, on node n1 it is \w{12}"),
    ("directory", r"node n2, rank 1: mine/tiny/directory is not the directory that node n1 writes to"),
]


@pytest.mark.parametrize(("name", "words"), CASES)
def test_preflight_names_the_node(cases, name, words):
    log = cases["preflight_names_the_node"].result()[name]
    assert re.search(f"^error: {words}", log, re.M), log
    assert len(re.findall("^error: ", log, re.M)) == 1, log


def test_stacks_on_demand_and_records(cluster):
    """USR2 shows where every rank is without stopping it."""
    run = cluster.submit("asked")
    run.reaches("batch", 1)
    run.send("USR2")
    run.until(lambda: "most recent call first" in run.log)
    cluster.aim("slurm", "cancel", "--run", "asked")
    assert parse_jobs(cluster.sh("scontrol", "show", "job", run.job))[0].id == run.job
    assert signal.SIGUSR2.name not in run.log
