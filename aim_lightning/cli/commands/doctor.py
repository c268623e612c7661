"""`aim-lightning doctor`: print what this machine has."""

import argparse
import importlib.metadata
import os
import platform

HELP = "print versions, devices, and which kernels can be used"
NEEDS_CONFIG = False
PACKAGES = "torch torchvision lightning torchmetrics omegaconf jsonargparse webdataset tensorboard safetensors"
PACKAGES += " huggingface-hub torch-fidelity triton mamba-ssm causal-conv1d"


def run(config: None, options: argparse.Namespace) -> int:
    """Print versions, devices and kernels; return 0, also without kernels."""
    import torch

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES.split():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"  {package:18s}{version}")
    policy = os.environ.get("OMP_WAIT_POLICY", "OpenMP's default; passive is chosen where processors are short")
    print(f"CPU: {torch.get_num_threads()} threads; OMP_WAIT_POLICY: {policy}")
    # NVML counts GPUs that the CUDA runtime cannot use, for instance because the driver is too old.
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        memory, bf16 = properties.total_memory / 2**30, torch.cuda.is_bf16_supported()
        print(f"GPU {i}: {properties.name}, {memory:.0f} GiB, bf16 {bf16}")
    if not torch.cuda.is_available():
        print("GPU: none that torch can use" + ("" if torch.version.cuda else " (this torch is built without CUDA)"))
    from aim_lightning.models import AiMConfig
    from aim_lightning.models.aim.backends.choose import BACKENDS, choose_backend, missing

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("kernels of each backend, for AiM-B in bfloat16:")
    for name in BACKENDS:
        backend = choose_backend(name, AiMConfig(), device, torch.bfloat16)
        reason = missing() if name == "mamba_ssm" else None  # before the lack of a GPU, so that login nodes show it
        print(f"  {name:18s}{backend.name + ': ' if name == 'auto' else ''}{reason or backend.kernels}")
    return 0
