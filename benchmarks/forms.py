"""One mixer's step over the past in every form: bytes and microseconds of the recurrence and of the dual form.

python benchmarks/forms.py [--rows 2,32,128] [--tokens 256,1024] [--repeats 20]
AiM-B's widths. The recurrence in PyTorch (compiled) with a bfloat16 and a float32 state, mamba-ssm's
selective_state_update where it is installed, and the fast decoder's mix kernel (on a CPU its PyTorch step), which
also gates, adds the skip and sums the norm's squares. The dual form reads more at each step: mean of four steps of
the sequence. Copies are taken in turn so that the cache holds none. Writes benchmarks/results/forms_HARDWARE_DATE.json.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
from record import hardware, save
from torch import Tensor

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling.fast.buffers import Buffers, exponent_type
from aim_lightning.sampling.fast.static_weights import StaticWeights
from aim_lightning.sampling.fast.torch_step import _dual

BEYOND_CACHE = 160 * 2**20  # bytes of all copies on a GPU; an H100's L2 cache has 50 MiB
MOST_COPIES = 200
Work = Callable[[], object]


def update(state_MHPN: Tensor, x_MHP: Tensor, dt_MH: Tensor, a_H: Tensor, b_MN: Tensor, c_MN: Tensor) -> Tensor:
    """Compute one step of the recurrence, y_MHP; the state changes in place and is computed in float32."""
    decay = torch.exp(-dt_MH * a_H)[..., None, None]
    new = state_MHPN.float() * decay + (dt_MH[..., None] * x_MHP.float())[..., None] * b_MN.float()[:, None, None]
    state_MHPN.copy_(new)
    return (new * c_MN.float()[:, None, None]).sum(-1)


def inputs(config: AiMConfig, rows: int, device: torch.device) -> list[Tensor]:
    """Return x_MHP, dt_MH, a_H, b_MN, c_MN of a step."""
    H, P, N = config.nheads, config.headdim, config.d_state
    make = lambda *shape: torch.randn(shape, device=device)  # noqa: E731
    x, b, c = (make(*shape).bfloat16() for shape in ((rows, H, P), (rows, N), (rows, N)))
    return [x, make(rows, H).abs(), make(H).abs(), b, c]


def recurrences(config: AiMConfig, rows: int, device: torch.device) -> Iterator[tuple[str, int, list[Work]]]:
    """Yield (form, bytes of a step, the step on each copy)."""
    H, P, N = config.nheads, config.headdim, config.d_state
    x, dt, a, b, c = inputs(config, rows, device)
    for dtype in (torch.bfloat16, torch.float32):
        size = 2 * rows * H * P * N * dtype.itemsize
        states = [torch.zeros(rows, H, P, N, dtype=dtype, device=device) for _ in range(copies(size // 2, device))]
        step, name_of_dtype = torch.compile(update, dynamic=False), str(dtype).removeprefix("torch.")
        yield f"recurrence, {name_of_dtype} state", size, [partial(step, state, x, dt, a, b, c) for state in states]
        if device.type == "cuda" and importlib.util.find_spec("mamba_ssm"):
            from mamba_ssm.ops.triton.selective_state_update import selective_state_update

            wide = dt[..., None].expand(-1, -1, P), (-a)[:, None, None].expand(-1, P, N), b[:, None], c[:, None]
            # 2.3.1 asks for the optional skip and bias, as it takes them from Mamba-2: nothing added, nothing skipped.
            none = torch.zeros(H, 1, device=device).expand(-1, P)
            yield (
                f"mamba-ssm, {name_of_dtype} state",
                size,
                [partial(selective_state_update, state, x, *wide, D=none, dt_bias=none) for state in states],
            )


def decoders(
    config: AiMConfig, rows: int, device: torch.device, stored: int
) -> tuple[int, Callable[[int], list[Work]]]:
    """Return (mean bytes per step, a function from step number to the fast decoder's step on each copy).

    stored: all codes, or 0 for the recurrence.
    """
    dtype = torch.bfloat16
    packed = device.type == "cuda"
    code = (config.d_inner + config.d_state) * (1 if packed else dtype.itemsize)
    code += config.nheads * exponent_type(stored, dtype).itemsize
    size = rows * stored // 2 * code if stored else 2 * rows * config.d_inner * config.d_state * 4
    count = copies(size, device)
    with torch.device(device):
        model = AiM(replace(config, n_layer=1, vocab_size=64), backend="torch").eval()
    many = SimpleNamespace(config=replace(model.config, n_layer=count), lm_head=model.lm_head)
    buffers, weights = Buffers(many, rows, False, dtype, stored, packed), StaticWeights(model, dtype)
    weights.refresh(model)
    weights.layers = weights.layers * count
    for layer in buffers.layers:
        for values in (layer.x_MTI, layer.b_MTN, layer.g_MHT, layer.decay_MH, layer.state_MIN):
            if values is not None:
                values.fill_(0.01 if values.is_floating_point() else 0x4041)  # any two bytes
    for values in (buffers.gate_MI, buffers.x_MI, buffers.b_MN, buffers.c_MN, buffers.dt_MH):
        values.fill_(0.5)
    return size, lambda step: _steps(many.config, weights, buffers, step)


def _steps(config: AiMConfig, weights: StaticWeights, buffers: Buffers, step: int) -> list[Work]:
    buffers.set_step(step)
    if buffers.codes_BT.is_cuda:
        from aim_lightning.sampling.fast.triton_step import TritonStep

        steps = TritonStep(config, weights, buffers)
        steps.launch = {"CHAINED": False}  # each by itself, like the others
        return [partial(steps._mix, i) for i in range(config.n_layer)]
    return [partial(_dual, buffers.c_MN.float(), cache, step + 1, config) for cache in buffers.layers]


def copies(size: int, device: torch.device) -> int:
    """Return the number of copies that together exceed a GPU's cache."""
    return 1 if device.type == "cpu" else min(MOST_COPIES, 1 + BEYOND_CACHE // size)


def microseconds(work: list[Work], repeats: int) -> float:
    """Measure the median of one step; on a GPU all copies are replayed as one graph."""
    for _ in range(2):
        work[0]()
    run = lambda: [step() for step in work]  # noqa: E731
    if torch.cuda.is_available():
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]) / len(work) * 1e6


def measure(config: AiMConfig, rows: int, device: torch.device, repeats: int, recurrent: bool = True) -> list[dict]:
    """Return a record per form; the recurrence's cost is the same for any number of codes."""
    records = []
    for form, size, work in recurrences(config, rows, device) if recurrent else ():
        records.append({"form": form, "rows": rows, "tokens": "any", "bytes": size, "us": microseconds(work, repeats)})
    T, forms = config.num_tokens, {"dual": config.num_tokens}
    if device.type == "cuda" and recurrent:
        forms["recurrence, fused"] = 0
    for form, stored in forms.items():
        size, steps_at = decoders(config, rows, device, stored)
        times = [microseconds(steps_at(T * part // 8), repeats) for part in (1, 3, 5, 7)]
        records.append({"form": form, "rows": rows, "tokens": T, "bytes": size, "us": statistics.mean(times)})
    for row in records:
        row |= {"us": round(row["us"], 2), "gb_per_s": round(row["bytes"] / row["us"] / 1e3, 1)}
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="2,32,128", help="images, twice as many with guidance")
    parser.add_argument("--tokens", default="256,1024", help="codes of a sequence")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lengths, records = [int(count) for count in options.tokens.split(",")], []
    print(f"{hardware()}: one layer of AiM-B, one step", flush=True)
    with torch.no_grad():
        for rows in map(int, options.rows.split(",")):
            for tokens in lengths:
                config = AiMConfig.preset("AiM-B", num_tokens=tokens)
                records += measure(config, rows, device, options.repeats, recurrent=tokens == lengths[0])
    print(f"written to {save('forms', records)}")


if __name__ == "__main__":
    main()
