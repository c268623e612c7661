"""`aim-lightning doctor`: print what this machine has."""

import argparse
import importlib
import importlib.metadata
import os
import platform

HELP = "print versions, devices, and which kernels can be used"
NEEDS_CONFIG = False
PACKAGES = "torch torchvision lightning torchmetrics omegaconf jsonargparse webdataset tensorboard safetensors"
PACKAGES += " huggingface-hub torch-fidelity triton mamba-ssm causal-conv1d"
# Module -> its purpose.
KERNELS = {
    "mamba_ssm.ops.triton.ssd_combined": "chunked scan of Mamba-2",
    "mamba_ssm.ops.triton.selective_state_update": "decoding step of Mamba-2",
    "causal_conv1d": "fused causal convolution",
}


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
    print("kernels:\n  plain PyTorch scan: usable")
    for module, purpose in KERNELS.items():
        print(f"  {module} ({purpose}): {_usable(module, torch.cuda.is_available())}")
    return 0


def _usable(module: str, has_gpu: bool) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken compiled package may raise anything while it is imported
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"not usable: {reason}; make install-cuda on a machine with CUDA"
    return "usable" if has_gpu else "not usable: installed, but there is no GPU"
