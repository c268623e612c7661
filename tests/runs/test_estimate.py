"""The arithmetic of `plan`."""

from aim_lightning.runs.training_estimate import Training, requeue_window, shard_bytes

AIM_B = Training(
    trained=147_622_080,
    averaged=147_622_080,
    rows=1_281_167,
    global_batch_size=2048,
    devices=8,
    steps=187_500,
    kept_checkpoints=2,
    every_n_steps=1000,
    every_n_minutes=None,
)


def test_memory_and_disk():
    assert AIM_B.state_bytes == 147_622_080 * 20  # float32 weights, gradients, two moments, average
    assert AIM_B.checkpoint_bytes == 147_622_080 * 16
    assert AIM_B.checkpoints_bytes == 3 * AIM_B.checkpoint_bytes
    assert shard_bytes(1_281_167, 10, 256) == 1_281_167 * 5148


def test_time():
    assert AIM_B.hours(1000) == 187_500 * 2048 / 1000 / 3600
    assert AIM_B.lost_seconds(1024) == 2000
    both = Training(**{**AIM_B.__dict__, "every_n_minutes": 15})
    assert both.lost_seconds(1024) == 900 and both.lost_seconds(1e6) < 900
    by_time = Training(**{**AIM_B.__dict__, "every_n_minutes": 15, "every_n_steps": None})
    assert by_time.lost_seconds(1e9) == 900


def test_the_warning_comes_before_the_longest_pause_and_a_checkpoint():
    assert requeue_window(20, 10) == 45
    assert requeue_window(20, 10, step_seconds=2) == 48  # several ranks
