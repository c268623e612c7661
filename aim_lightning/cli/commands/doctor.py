"""`aim-lightning doctor`: what this machine has."""

import argparse
import importlib
import importlib.metadata
import os
import platform

HELP = "print versions, devices, and which kernels can be used"
NEEDS_CONFIG = False


PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "omegaconf",
    "jsonargparse",
    "webdataset",
    "tensorboard",
    "safetensors",
    "huggingface-hub",
    "torch-fidelity",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
)
# module, what it is for, how to get it
KERNELS = (
    ("mamba_ssm.ops.triton.ssd_combined", "chunked scan of Mamba-2", "make install-cuda"),
    ("mamba_ssm.ops.triton.selective_state_update", "decoding step of Mamba-2", "make install-cuda"),
    ("causal_conv1d", "fused causal convolution", "make install-cuda"),
)


def run(document: None, options: argparse.Namespace) -> int:
    """Prints versions, devices and kernels; always exits 0: a missing kernel is a fact, no fault."""
    import torch

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        print(f"  {package:18s}{_version(package)}")
    policy = os.environ.get("OMP_WAIT_POLICY", "OpenMP's default; passive is chosen where processors are short")
    print(f"CPU: {torch.get_num_threads()} threads; OMP_WAIT_POLICY: {policy}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            memory, bf16 = properties.total_memory / 2**30, torch.cuda.is_bf16_supported()
            print(f"GPU {i}: {properties.name}, {memory:.0f} GiB, bf16 {bf16}")
    else:
        print("GPU: none that torch can use" + ("" if torch.version.cuda else " (this torch is built without CUDA)"))
    print("kernels:")
    print("  plain PyTorch scan: usable")
    for module, purpose, advice in KERNELS:
        print(f"  {module} ({purpose}): {_usable(module, advice, torch.cuda.is_available())}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _usable(module: str, advice: str, has_gpu: bool) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken compiled package may raise anything while it is imported
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"not usable: {reason}; {advice} on a machine with CUDA"
    return "usable" if has_gpu else "not usable: installed, but there is no GPU"
