"""What `Preemption` measures for the signal lead of the next job."""

from types import SimpleNamespace

from aim_lightning.callbacks.training import preemption
from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.cluster import step_timings


def test_the_first_step_of_a_process_is_no_pause_that_a_warning_must_wait_for(tmp_path, monkeypatch):
    """Kernels are tuned and compiled in it, for minutes: the next submission would be refused for it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(preemption.time, "perf_counter", lambda: clock.now)
    trainer = SimpleNamespace(is_global_zero=True, global_step=40, callbacks=[])
    callback = Preemption(str(tmp_path))
    callback._keep(trainer)
    assert step_timings.read(tmp_path) == {}
    # an evaluation before the first step, the first step, then ordinary ones and a validation
    for seconds, step in ((0, 40), (5, 40), (300, 41), (2, 42), (2, 43), (30, 44), (2, 45)):
        clock.now, trainer.global_step = clock.now + seconds, step
        callback._measure(trainer)
    known = step_timings.read(tmp_path)  # a job that ends inside such a pause writes nothing more
    assert known["longest_pause_seconds"] == 30.0
    callback._keep(trainer)
    known = step_timings.read(tmp_path)
    assert (known["longest_pause_seconds"], known["step_seconds"]) == (30.0, 2.0)
