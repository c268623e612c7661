"""Where AiM's arithmetic runs: plain PyTorch everywhere, mamba-ssm's kernels on NVIDIA GPUs; same parameters."""

from aim_lightning.models.aim.backends.choose import BACKENDS, Backend, choose_backend, launcher_fault, require_backend

__all__ = ["BACKENDS", "Backend", "choose_backend", "launcher_fault", "require_backend"]
