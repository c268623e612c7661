"""Tune the fast decoder's kernel configurations: random changes, kept where complete sequences take less time.

python benchmarks/tune_sampling.py [--models AiM-B,AiM-L] [--batches 16,16] [--seconds 600] [--seed 1] [--out FILE]
A change (benchmarks/trials.py) must give the same codes as before; then both are timed interleaved. While one is timed,
other processes compile the next ones. --out, by default kernel_configs.json of the package, is written after every
gain: a run that is cut off loses nothing. Needs a GPU. Another --seed searches elsewhere: the best of a few is kept.
"""

import argparse
import json
import multiprocessing
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing.pool import Pool
from pathlib import Path
from unittest import mock

import torch
from sampling import GOALS, OPTIONS, timed
from torch import Tensor
from trials import allowed, trial

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling.fast import FastDecoder, kernel_configs
from aim_lightning.sampling.fast.kernel_configs import KernelConfigs, kernel_configs_for
from aim_lightning.sampling.filters import Filters
from aim_lightning.utils.files import atomic_path

PATH = Path(kernel_configs.__file__).with_name("kernel_configs.json")
GAIN = 0.9965  # ratio of times below which a configuration is better
HOPELESS = 1.02  # ratio of times above which a configuration is not timed again
REPEATS = 7  # sequences of both
TWICE = 0.3  # of the trials change two kernels
COMPILING = 60  # seconds
NEAR = 3e-2  # of logits from those of the current configurations, norm over norm, after a complete sequence
Case = tuple[str, int]
# So hot that every code is equally likely and rounding changes none: all configurations have the same history.
HOT = {"temperature": 1e9, "top_k": 0, "top_p": 1.0}


@dataclass
class Samples:
    """Results of a configuration: codes under the benchmark's options; codes and last logits when hot."""

    codes_BT: Tensor
    hot_BT: Tensor
    logits_MV: Tensor


class Sequence:
    """A decoder in a given configuration, ready to sample."""

    def __init__(self, model: AiM, batch: int, configs: KernelConfigs, graph: bool = True) -> None:
        self.model, self.device = model, model.lm_head.weight.device
        with mock.patch.object(kernel_configs, "table", lambda: {(model.config.d_model, 2 * batch): configs}):
            self.decoder = FastDecoder(model, batch, True, torch.bfloat16, graph)
        generator = torch.Generator().manual_seed(0)
        self.uniform = torch.rand(batch, model.config.num_tokens, generator=generator, dtype=torch.float64)
        self.uniform, self.labels = self.uniform.to(self.device), torch.arange(batch, device=self.device)
        self.labels %= model.config.num_classes

    def sample(self, **options) -> Tensor:
        scales = [OPTIONS["cfg_scale"]] * self.model.config.num_tokens
        filters = Filters(**{"top_k": OPTIONS["top_k"], "top_p": OPTIONS["top_p"], **options})
        return self.decoder.run(self.model, self.labels, self.uniform, scales=scales, filters=filters)

    def samples(self) -> Samples:
        hot = self.sample(**HOT)
        logits = self.decoder.buffers.logits_MV.clone()
        return Samples(self.sample(), hot, logits)

    def seconds(self) -> float:
        return timed(self.sample, self.device, 1, warm_up=0)[0]


def fault(result: Samples, expected: Samples) -> str | None:
    """Return how a result differs from the first configuration's; None if it is equal up to rounding."""
    if not torch.equal(result.hot_BT, expected.hot_BT):
        return "other codes although all are equally likely"
    distance = float((result.logits_MV - expected.logits_MV).norm() / expected.logits_MV.norm())
    if not distance <= NEAR:
        return f"logits are {distance:.1e} apart"
    other = int((result.codes_BT[:, 0] != expected.codes_BT[:, 0]).sum())
    if other > 2 + len(result.codes_BT) // 2:  # one of hundreds is chosen: rounding moves many choices to the next
        return f"{other} images begin with another code"
    return None


def faster(best: Sequence, other: Sequence, best_seconds: float) -> tuple[float, float] | None:
    """Return the least seconds of both, measured interleaved, where `other` takes less; cheap where it does not.

    best_seconds: the latest time of `best`.
    """
    other.seconds()
    quick = min(other.seconds(), other.seconds())
    if quick > best_seconds * HOPELESS or quick > min(best.seconds() for _ in range(3)):
        return None
    times = [(best.seconds(), other.seconds()) for _ in range(REPEATS)]
    before, after = map(min, zip(*times, strict=True))
    return (before, after) if after < before * GAIN else None


def tune(
    model: AiM,
    batch: int,
    configs: KernelConfigs,
    propose: Callable[[KernelConfigs], KernelConfigs | None],
    until: float,
    keep: Callable[[KernelConfigs], None],
) -> KernelConfigs:
    """Return the best configurations after a series of gains, each passed to `keep`.

    propose: returns configurations to try, given the best; None ends the search.
    """
    best = Sequence(model, batch, configs)
    expected, best_seconds, tried = best.samples(), min(best.seconds() for _ in range(REPEATS)), 0
    while time.monotonic() < until and (new := propose(configs)) is not None:
        tried += 1
        try:
            other = Sequence(model, batch, new)
            times = faster(best, other, best_seconds)
            why = times and fault(other.samples(), expected)
        except Exception as error:  # for example too much shared memory: try another change
            reason = str(error).partition("\n")[0][:100]
            print(f"  {type(error).__name__} {reason}: {changed(configs, new)}", flush=True)
            continue
        if why:
            print(f"  REFUSED, {why}: {changed(configs, new)}", flush=True)
        elif times:
            print(f"  {times[0]:.4f} -> {times[1]:.4f} s {changed(configs, new)}", flush=True)
            configs, best, best_seconds = new, other, times[1]
            keep(configs)
    print(f"  {tried} tried", flush=True)
    return configs


def changed(old: KernelConfigs, new: KernelConfigs) -> dict:
    """Return the fields that differ."""
    before = asdict(old)
    return {name: value for name, value in asdict(new).items() if value != before[name]}


class Proposals:
    """KernelConfigs near the best ones, none twice, whose kernels other processes have compiled.

    Those near an earlier best, which were being compiled when a gain came, are tried too.
    """

    def __init__(
        self, case: Case, pool: Pool, workers: int, seed: int, shared: int = kernel_configs.SHARED_BYTES
    ) -> None:
        self.case, self.pool, self.ahead, self.shared = case, pool, 2 * workers, shared
        self.random, self.seen, self.waiting = random.Random(seed), set(), deque()
        self.config, self.rows = AiMConfig.preset(case[0]), 2 * case[1]

    def __call__(self, best: KernelConfigs) -> KernelConfigs:
        self.seen.add(best)
        while len(self.waiting) < self.ahead:
            new = self._new(best)
            self.waiting.append((new, self.pool.apply_async(compile_only, (self.case, new))))
        new, compiled = self.waiting.popleft()
        compiled.wait(COMPILING)  # if it failed, the trial will say why
        return new

    def _new(self, best: KernelConfigs) -> KernelConfigs:
        while True:
            new = trial(self.random, best)
            if self.random.random() < TWICE:
                new = trial(self.random, new)
            if new not in self.seen and allowed(new, self.config, self.rows, self.shared):
                self.seen.add(new)
                return new


def compile_only(case: Case, configs: KernelConfigs) -> None:
    """Compile into Triton's cache, with a shallow network of the same widths; no kernel of the decoder runs."""
    from triton.runtime.jit import JITFunction

    def compiled(kernel, grid):
        return lambda *args, **kwargs: kernel.run(*args, grid=grid, warmup=True, **kwargs)

    with mock.patch.object(JITFunction, "__getitem__", compiled):
        Sequence(shallow(case[0]), case[1], configs, graph=False).decoder._step()


@lru_cache(1)
def shallow(name: str) -> AiM:
    """Build a preset of few layers and codes."""
    preset = AiMConfig.preset(name)
    with torch.device("cuda"):
        return AiM(replace(preset, n_layer=max(2, preset.num_groups), num_tokens=16)).eval()


def shortened(name: str, layers: int) -> AiM:
    """Build a preset with some of its layers (0: all): a kernel takes as long in a shallower network."""
    torch.manual_seed(0)
    preset = AiMConfig.preset(name)
    with torch.device("cuda"):
        return AiM(replace(preset, n_layer=min(layers, preset.n_layer) or preset.n_layer)).eval()


def key(case: Case) -> tuple[int, int]:
    """Return the key of a row of the table."""
    return AiMConfig.preset(case[0]).d_model, 2 * case[1]


def store(path: Path, key_: tuple[int, int], configs: KernelConfigs) -> None:
    """Write a row to the table, one line per row; the file is complete at any moment."""
    table = json.loads((path if path.exists() else PATH).read_text())
    table["x".join(map(str, key_))] = {name: _stored(value) for name, value in asdict(configs).items()}
    lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in table.items())
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + lines + "\n}\n")


def _stored(value):
    """Return a kernel's fields without their names, as in the table."""
    return list(value.values()) if isinstance(value, dict) else value


def search(case: Case, options: argparse.Namespace, until: float) -> None:
    """Tune one row of the table, and print the gain of the complete network."""
    model = shortened(case[0], options.layers)
    shared = kernel_configs.shared_bytes(model.lm_head.weight.device)
    before = configs = kernel_configs_for(model.config, 2 * case[1], torch.bfloat16, shared)
    print(f"{case}, {model.config.n_layer} layers: {configs}", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        propose = Proposals(case, pool, options.workers, options.seed, shared)
        configs = tune(model, case[1], configs, propose, until, lambda best: store(options.out, key(case), best))
        pool.terminate()
    if configs != before:
        model = shortened(case[0], 0)
        ways = [Sequence(model, case[1], kernel_config) for kernel_config in (before, configs)]
        seconds = [min(sequence.seconds() for _ in range(REPEATS)) for sequence in ways]
        print(f"{case}, all layers: {seconds[0]:.4f} -> {seconds[1]:.4f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="presets, with commas (default: those of the goals)")
    parser.add_argument("--batches", help="images, one for each model")
    parser.add_argument("--layers", type=int, default=12, help="of the network that is timed; 0 = all [12]")
    parser.add_argument("--seconds", type=float, default=600, help="time for all of it [600]")
    parser.add_argument("--seed", type=int, default=0, help="of the changes [0]")
    parser.add_argument("--workers", type=int, default=14, help="processes that compile [14]")
    parser.add_argument("--out", type=Path, default=PATH, help="table to write")
    options = parser.parse_args()
    begin, cases = time.monotonic(), list(GOALS)
    if bool(options.models) != bool(options.batches):
        parser.error("--models and --batches belong together")
    if options.models:
        cases = list(zip(options.models.split(","), map(int, options.batches.split(",")), strict=True))
    for done, case in enumerate(cases):
        now = time.monotonic()
        search(case, options, now + max(0, begin + options.seconds - now) / (len(cases) - done))
    print(f"written to {options.out}; next: python benchmarks/sampling.py")


if __name__ == "__main__":
    main()
