"""Finds the shapes of the fast decoder's kernels: random changes, kept where whole sequences take less time.

python benchmarks/tune_sampling.py [--models AiM-B,AiM-L] [--batches 16,16] [--seconds 600] [--seed 1] [--out FILE]
A change (benchmarks/trials.py) must draw what the shapes before draw; then both are timed by turns. While one is timed,
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
from aim_lightning.sampling.fast.kernel_configs import Shapes, shapes_for
from aim_lightning.sampling.filters import Filters
from aim_lightning.utils.files import atomic_path

PATH = Path(kernel_configs.__file__).with_name("kernel_configs.json")
GAIN = 0.9965  # what counts as better
HOPELESS = 1.02  # what is not timed again
REPEATS = 7  # sequences of both
TWICE = 0.3  # of the trials change two kernels
COMPILING = 60  # seconds
NEAR = 3e-2  # of logits from those of the present shapes, norm over norm, after a whole sequence
Case = tuple[str, int]
# So hot that every code is equally likely and rounding draws no other: all shapes have the same past.
HOT = {"temperature": 1e9, "top_k": 0, "top_p": 1.0}


@dataclass
class Drawn:
    """What shapes draw: codes under the benchmark's options; codes and last logits when hot."""

    codes_BT: Tensor
    hot_BT: Tensor
    logits_MV: Tensor


class Sequence:
    """A decoder in given shapes, ready to draw."""

    def __init__(self, model: AiM, batch: int, wanted: Shapes, graph: bool = True) -> None:
        self.model, self.device = model, model.lm_head.weight.device
        with mock.patch.object(kernel_configs, "table", lambda: {(model.config.d_model, 2 * batch): wanted}):
            self.decoder = FastDecoder(model, batch, True, torch.bfloat16, graph)
        generator = torch.Generator().manual_seed(0)
        self.uniform = torch.rand(batch, model.config.num_tokens, generator=generator, dtype=torch.float64)
        self.uniform, self.labels = self.uniform.to(self.device), torch.arange(batch, device=self.device)
        self.labels %= model.config.num_classes

    def draw(self, **options) -> Tensor:
        scales = [OPTIONS["cfg_scale"]] * self.model.config.num_tokens
        filters = Filters(**{"top_k": OPTIONS["top_k"], "top_p": OPTIONS["top_p"], **options})
        return self.decoder.run(self.model, self.labels, self.uniform, scales=scales, filters=filters)

    def drawn(self) -> Drawn:
        hot = self.draw(**HOT)
        logits = self.decoder.buffers.logits_MV.clone()
        return Drawn(self.draw(), hot, logits)

    def seconds(self) -> float:
        return timed(self.draw, self.device, 1, warm_up=0)[0]


def fault(found: Drawn, wanted: Drawn) -> str | None:
    """Why `found` is not what the first shapes draw; None if it is, up to rounding."""
    if not torch.equal(found.hot_BT, wanted.hot_BT):
        return "other codes although all are equally likely"
    distance = float((found.logits_MV - wanted.logits_MV).norm() / wanted.logits_MV.norm())
    if not distance <= NEAR:
        return f"logits are {distance:.1e} apart"
    other = int((found.codes_BT[:, 0] != wanted.codes_BT[:, 0]).sum())
    if other > 2 + len(found.codes_BT) // 2:  # a code is drawn among hundreds: rounding moves many a draw to the next
        return f"{other} images begin with another code"
    return None


def faster(best: Sequence, other: Sequence, known: float) -> tuple[float, float] | None:
    """Least seconds of both by turns, where `other` takes less; cheap where it does not.

    known: what `best` took when it was last timed.
    """
    other.seconds()
    quick = min(other.seconds(), other.seconds())
    if quick > known * HOPELESS or quick > min(best.seconds() for _ in range(3)):
        return None
    times = [(best.seconds(), other.seconds()) for _ in range(REPEATS)]
    before, after = map(min, zip(*times, strict=True))
    return (before, after) if after < before * GAIN else None


def tune(
    model: AiM,
    batch: int,
    found: Shapes,
    propose: Callable[[Shapes], Shapes | None],
    until: float,
    keep: Callable[[Shapes], None],
) -> Shapes:
    """The best shapes on a way of gains, each `keep`t when it is found. propose: shapes to try, given the best;
    None ends it."""
    best = Sequence(model, batch, found)
    wanted, known, tried = best.drawn(), min(best.seconds() for _ in range(REPEATS)), 0
    while time.monotonic() < until and (new := propose(found)) is not None:
        tried += 1
        try:
            other = Sequence(model, batch, new)
            times = faster(best, other, known)
            why = times and fault(other.drawn(), wanted)
        except Exception as error:  # too much shared memory, say: another change will do
            print(
                f"  {type(error).__name__} {str(error).partition(chr(10))[0][:100]}: {changed(found, new)}", flush=True
            )
            continue
        if why:
            print(f"  REFUSED, {why}: {changed(found, new)}", flush=True)
        elif times:
            print(f"  {times[0]:.4f} -> {times[1]:.4f} s {changed(found, new)}", flush=True)
            found, best, known = new, other, times[1]
            keep(found)
    print(f"  {tried} tried", flush=True)
    return found


def changed(old: Shapes, new: Shapes) -> dict:
    """Fields that differ."""
    before = asdict(old)
    return {name: value for name, value in asdict(new).items() if value != before[name]}


class Proposals:
    """Shapes near the best ones, none twice, whose kernels other processes have compiled.

    Those near an earlier best, which were being compiled when a gain came, are tried too.
    """

    def __init__(
        self, case: Case, pool: Pool, workers: int, seed: int, shared: int = kernel_configs.SHARED_BYTES
    ) -> None:
        self.case, self.pool, self.ahead, self.shared = case, pool, 2 * workers, shared
        self.random, self.seen, self.waiting = random.Random(seed), set(), deque()
        self.config, self.rows = AiMConfig.preset(case[0]), 2 * case[1]

    def __call__(self, best: Shapes) -> Shapes:
        self.seen.add(best)
        while len(self.waiting) < self.ahead:
            new = self._new(best)
            self.waiting.append((new, self.pool.apply_async(compile_only, (self.case, new))))
        new, compiled = self.waiting.popleft()
        compiled.wait(COMPILING)  # if it failed, the trial will say why
        return new

    def _new(self, best: Shapes) -> Shapes:
        while True:
            new = trial(self.random, best)
            if self.random.random() < TWICE:
                new = trial(self.random, new)
            if new not in self.seen and allowed(new, self.config, self.rows, self.shared):
                self.seen.add(new)
                return new


def compile_only(case: Case, wanted: Shapes) -> None:
    """Into Triton's cache, with a shallow network of the same widths; no kernel of the decoder runs."""
    from triton.runtime.jit import JITFunction

    def compiled(kernel, grid):
        return lambda *args, **kwargs: kernel.run(*args, grid=grid, warmup=True, **kwargs)

    with mock.patch.object(JITFunction, "__getitem__", compiled):
        Sequence(shallow(case[0]), case[1], wanted, graph=False).decoder._step()


@lru_cache(1)
def shallow(name: str) -> AiM:
    """Of few layers and codes."""
    preset = AiMConfig.preset(name)
    with torch.device("cuda"):
        return AiM(replace(preset, n_layer=max(2, preset.num_groups), num_tokens=16)).eval()


def shortened(name: str, layers: int) -> AiM:
    """A preset with so many of its layers (0: all): kernels take as long in fewer of them."""
    torch.manual_seed(0)
    preset = AiMConfig.preset(name)
    with torch.device("cuda"):
        return AiM(replace(preset, n_layer=min(layers, preset.n_layer) or preset.n_layer)).eval()


def key(case: Case) -> tuple[int, int]:
    """Of a row of the table."""
    return AiMConfig.preset(case[0]).d_model, 2 * case[1]


def store(path: Path, place: tuple[int, int], found: Shapes) -> None:
    """Into the table, which is complete at any moment; a row is a line of it."""
    table = json.loads((path if path.exists() else PATH).read_text())
    table["x".join(map(str, place))] = {name: _stored(value) for name, value in asdict(found).items()}
    lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in table.items())
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + lines + "\n}\n")


def _stored(value):
    """A kernel's fields without their names, as the table has them."""
    return list(value.values()) if isinstance(value, dict) else value


def search(case: Case, options: argparse.Namespace, until: float) -> None:
    """Tune one row of the table, and say what the whole network gains."""
    model = shortened(case[0], options.layers)
    shared = kernel_configs.shared_bytes(model.lm_head.weight.device)
    before = found = shapes_for(model.config, 2 * case[1], torch.bfloat16, shared)
    print(f"{case}, {model.config.n_layer} layers: {found}", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        propose = Proposals(case, pool, options.workers, options.seed, shared)
        found = tune(model, case[1], found, propose, until, lambda best: store(options.out, key(case), best))
        pool.terminate()
    if found != before:
        model = shortened(case[0], 0)
        ways = [Sequence(model, case[1], shapes) for shapes in (before, found)]
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
