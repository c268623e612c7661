"""Launches of Triton kernels at a fraction of the usual cost on the host."""

import os
from collections.abc import Hashable
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_compiled: dict[tuple, tuple[Any, tuple]] = {}


def launch(
    key: Hashable,
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int = 3,
    maxnreg: int | None = None,
    **constants: Any,
) -> None:
    """Run a kernel whose parameters are `arguments`, then the names in `constants`.

    Triton binds and specializes every argument at every call, which costs more than most of these kernels run. The
    compiled kernel is therefore kept under `key`.

    Args:
        key: everything that the types, the alignment, the integers and the presence of the arguments depend on. Memory
            that PyTorch allocates is aligned, so that a shape fixes the alignment of its views too.
        kernel: a `triton.jit` function.
        grid: up to three numbers of programs.
        maxnreg: upper bound of registers per thread; None leaves it to the compiler.
    """
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    full_key = (key, kernel, num_warps, num_stages, maxnreg, *constants.values())
    found = _compiled.get(full_key)
    if found is None:
        options = {"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg}
        compiled = kernel[grid](*arguments, **constants, **options)
        _compiled[full_key] = compiled, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
    else:
        compiled, tail = found
        compiled[(*grid, 1, 1)[:3]](*arguments, *tail)
