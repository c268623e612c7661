"""Triton kernels of AiM's training path; every sum has a fixed order, and there are no atomics."""
