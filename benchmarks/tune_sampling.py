"""Tune the fast decoder's kernel configurations: random changes, kept where complete sequences take less time.

python benchmarks/tune_sampling.py [--models AiM-B,AiM-L] [--batches 16,16] [--seconds 600] [--seed 1] [--out FILE]
A change (benchmarks/trials.py) is timed interleaved with the best so far, by steps all over a sequence; a faster one
must give the same codes. While one is timed, other processes compile the next ones. Cases take turns over all GPUs; a
GPU's first case gets the most time. --out, by default kernel_configs.json of the package, is written after every gain:
a run that is cut off loses nothing. Needs a GPU. Another --seed searches elsewhere: the best of a few is kept.
"""

import argparse
import copy
import fcntl
import json
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing.pool import Pool
from pathlib import Path
from unittest import mock

import torch
from sampling import GOALS, OPTIONS, timed
from torch import Tensor
from trials import allowed, trial

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling.fast import FastDecoder, kernel_configs
from aim_lightning.sampling.fast.decoder import STEPS_PER_GRAPH
from aim_lightning.sampling.fast.kernel_configs import KernelConfigs, kernel_configs_for, table
from aim_lightning.sampling.filters import Filters
from aim_lightning.utils.files import atomic_path

PATH = Path(kernel_configs.__file__).with_name("kernel_configs.json")
GAIN = 0.9965  # ratio of times below which a configuration is better
HOPELESS = 1.02  # ratio of times above which a configuration is not timed again
REPEATS = 7  # measurements of both
PLACES = 1, 3, 5, 7  # eighths of a sequence where steps are measured
BEFORE = 400_000  # cycles in which a GPU waits, until all graphs of a measurement are queued
TWICE = 0.3  # of the trials change two kernels
BORROWED = 0.1  # of the trials take a kernel of another row of the table
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
    """A decoder in a given configuration, ready to sample.

    like: another sequence of the same model and batch, whose memory and values this one shares.
    """

    def __init__(
        self, model: AiM, batch: int, configs: KernelConfigs, graph: bool = True, like: "Sequence | None" = None
    ) -> None:
        self.model, self.device = model, model.lm_head.weight.device
        with mock.patch.object(kernel_configs, "table", lambda: {(model.config.d_model, 2 * batch): configs}):
            if like is None:
                self.decoder = FastDecoder(model, batch, True, torch.bfloat16, graph)
            else:
                self.decoder = copy.copy(like.decoder)
                self.decoder._step = type(self.decoder._step)(model.config, self.decoder.weights, self.decoder.buffers)
                self.decoder._replays = {}
        self.indices = torch.arange(batch)

    def sample(self, **options) -> Tensor:
        scales = [OPTIONS["cfg_scale"]] * self.model.config.num_tokens
        filters = Filters(**{"top_k": OPTIONS["top_k"], "top_p": OPTIONS["top_p"], **options})
        labels = self.indices % self.model.config.num_classes
        return self.decoder.run(self.model, labels, self.indices, seed=0, scales=scales, filters=filters)

    def samples(self) -> Samples:
        hot = self.sample(**HOT)
        logits = self.decoder.buffers.logits_MV.clone()
        return Samples(self.sample(), hot, logits)

    def seconds(self) -> float:
        """Return the time of a sequence, estimated by some of its steps; earlier codes are those of the last sample."""
        tokens = self.model.config.num_tokens
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(BEFORE)
        begin.record()
        for place in PLACES:
            self.decoder.buffers.set_step(tokens * place // 8)
            self.decoder._advance(STEPS_PER_GRAPH)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 * tokens / (len(PLACES) * STEPS_PER_GRAPH)


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
    print(f"  {best_seconds:.4f} s", flush=True)
    while time.monotonic() < until and (new := propose(configs)) is not None:
        tried += 1
        try:
            other = Sequence(model, batch, new, like=best)
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

    Those near an earlier best, which were being compiled when a gain came, are tried as changes of the new best.
    """

    def __init__(
        self, case: Case, pool: Pool, workers: int, seed: int, shared: int = kernel_configs.SHARED_BYTES
    ) -> None:
        self.case, self.pool, self.ahead, self.shared = case, pool, 2 * workers, shared
        self.random, self.seen, self.waiting = random.Random(seed), set(), []
        self.config, self.rows, self.others = AiMConfig.preset(case[0]), 2 * case[1], list(table().values())

    def __call__(self, best: KernelConfigs) -> KernelConfigs:
        self.seen.add(best)
        while True:
            while len(self.waiting) < self.ahead:
                new = self._new(best)
                self.waiting.append((best, new, self.pool.apply_async(compile_only, (self.case, new))))
            ready = [i for i, (_, _, compiled) in enumerate(self.waiting) if compiled.ready()]
            near, new, compiled = self.waiting.pop(ready[0] if ready else 0)
            compiled.wait(COMPILING)  # if it failed, the trial will say why
            if near == best:
                return new
            moved = replace(best, **{name: getattr(new, name) for name in changed(near, new)})
            if moved not in self.seen and allowed(moved, self.config, self.rows, self.shared):
                self.seen.add(moved)
                return moved

    def _new(self, best: KernelConfigs) -> KernelConfigs:
        while True:
            if self.random.random() < BORROWED:
                mixer = "mix" if best.dual else "state"
                kernel = self.random.choice(("project", "out", "head", mixer))
                new = replace(best, **{kernel: getattr(self.random.choice(self.others), kernel)})
            else:
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
        like = shallow(case)
        Sequence(like.model, case[1], configs, like=like).decoder._step()


@cache
def shallow(case: Case) -> Sequence:
    """Build a decoder of few layers with the row of the table: it only lends its memory."""
    preset = AiMConfig.preset(case[0])
    with torch.device("cuda"):
        model = AiM(replace(preset, n_layer=max(2, preset.num_groups), num_tokens=16)).eval()
    shared = kernel_configs.shared_bytes(model.lm_head.weight.device)
    return Sequence(model, case[1], kernel_configs_for(model.config, 2 * case[1], torch.bfloat16, shared), graph=False)


def shortened(name: str, layers: int) -> AiM:
    """Build a preset with some of its layers (0: all): a kernel takes as long in a shallower network."""
    torch.manual_seed(0)
    preset = AiMConfig.preset(name)
    with torch.device("cuda"):
        model = AiM(replace(preset, n_layer=min(layers, preset.n_layer) or preset.n_layer)).eval()
    # Gates of a new adaLN-layer network are zero: its logits would not depend on the mixers.
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def key(case: Case) -> tuple[int, int]:
    """Return the key of a row of the table."""
    return AiMConfig.preset(case[0]).d_model, 2 * case[1]


def store(path: Path, key_: tuple[int, int], configs: KernelConfigs) -> None:
    """Write a row to the table, one line per row; the file is complete at any moment.

    Processes of several GPUs write in turn.
    """
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        rows = json.loads((path if path.exists() else PATH).read_text())
        rows["x".join(map(str, key_))] = {name: _stored(value) for name, value in asdict(configs).items()}
        lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in rows.items())
        with atomic_path(path) as temporary:
            temporary.write_text("{\n" + lines + "\n}\n")
    finally:
        os.close(directory)


def _stored(value):
    """Return a kernel's fields without their names, as in the table."""
    return list(value.values()) if isinstance(value, dict) else value


def search(case: Case, options: argparse.Namespace, pool: Pool, until: float) -> tuple[KernelConfigs, KernelConfigs]:
    """Tune one row of the table; return it before and after."""
    model = shortened(case[0], options.layers)
    shared = kernel_configs.shared_bytes(model.lm_head.weight.device)
    before = kernel_configs_for(model.config, 2 * case[1], torch.bfloat16, shared)
    print(f"{case}, {model.config.n_layer} layers: {before}", flush=True)
    propose = Proposals(case, pool, options.workers, options.seed, shared)
    return before, tune(model, case[1], before, propose, until, lambda best: store(options.out, key(case), best))


@torch.no_grad()
def search_all(cases: list[Case], options: argparse.Namespace) -> None:
    """Tune rows of the table one after the other on one GPU, then print the gains of the complete networks."""
    begin, results, shares = time.monotonic(), {}, len(cases) * (len(cases) + 1) / 2
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        until = begin
        for done, case in enumerate(cases):
            until += options.seconds * (len(cases) - done) / shares
            results[case] = search(case, options, pool, until)
        pool.terminate()
    for case, both in results.items():
        model = shortened(case[0], 0)
        seconds = [statistics.median(complete(model, case[1], configs)) for configs in both]
        print(f"{case}, all layers: {seconds[0]:.4f} -> {seconds[1]:.4f} s", flush=True)


def complete(model: AiM, batch: int, configs: KernelConfigs) -> list[float]:
    """Return the seconds of complete sequences."""
    sequence = Sequence(model, batch, configs)
    return timed(sequence.sample, sequence.device, 3, warm_up=2)


def gpus() -> list[str]:
    """Return the names of the visible GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="presets, with commas (default: those of the goals)")
    parser.add_argument("--batches", help="images, one for each model")
    parser.add_argument("--layers", type=int, default=12, help="of the network that is timed; 0 = all [12]")
    parser.add_argument("--seconds", type=float, default=600, help="time of the search [600]")
    parser.add_argument("--seed", type=int, default=0, help="of the changes [0]")
    parser.add_argument("--workers", type=int, default=14, help="processes per GPU that compile [14]")
    parser.add_argument("--out", type=Path, default=PATH, help="table to write")
    options = parser.parse_args()
    cases, devices = list(GOALS), gpus()
    if bool(options.models) != bool(options.batches):
        parser.error("--models and --batches belong together")
    if options.models:
        cases = list(zip(options.models.split(","), map(int, options.batches.split(",")), strict=True))
    processes = []
    for number, device in enumerate(devices[: len(cases)]):
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # a process inherits it, and so do those that compile for it
        processes.append(
            multiprocessing.get_context("spawn").Process(
                target=search_all, args=(cases[number :: len(devices)], options)
            )
        )
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"tune_sampling: a process ended early; {options.out} has the gains so far")
    print(f"written to {options.out}; next: python benchmarks/sampling.py")


if __name__ == "__main__":
    main()
