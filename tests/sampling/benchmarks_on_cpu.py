"""The benchmarks of sampling with tiny sizes on a CPU; prints one JSON object.

It runs as a separate process, because a benchmark and a directory of tests are both called `sampling`.
"""

import contextlib
import io
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import baseline
import forms
import kernels
import pixels
import record
import sampling
import torch
import tune_sampling as tune
from captured import CapturedSequence
from helpers import random_weights
from kernels_on_cpu import network

from aim_lightning.models import GPT, AiMConfig, GPTConfig
from aim_lightning.sampling import SamplingOptions, generate
from aim_lightning.sampling.fast.kernel_configs import kernel_configs_for, table

CPU = torch.device("cpu")


def searched(directory: Path) -> dict:
    """Return the results of a search of three changes: slower, with other codes, and faster.

    On a CPU the buffers contain no logits, so constant ones replace them.
    """
    model = network("group", num_tokens=6)
    start, seconds = kernel_configs_for(model.config, 4, torch.bfloat16), {8: 1.0, 16: 0.9, 32: 0.9, 4: 2.0}
    start, kept = replace(start, sample_warps=8), []
    proposals = [*(replace(start, sample_warps=count) for count in (4, 32, 16)), None]
    samples = tune.Sequence.samples

    class Fake(tune.Sequence):
        def __init__(self, model, batch, configs, graph=True, like=None):
            super().__init__(model, batch, configs, graph, like)
            self.warps = configs.sample_warps

        def samples(self):
            return replace(samples(self), logits_MV=torch.full((4, 40), 1.5 if self.warps == 32 else 1.0))

        def seconds(self):
            return seconds[self.warps]

    def keep(best):
        kept.append(best.sample_warps)
        tune.store(directory / "kernel_configs.json", (16, 4), best)

    with mock.patch.object(tune, "Sequence", Fake), contextlib.redirect_stdout(io.StringIO()) as log:
        best = tune.tune(model, 2, start, lambda best: proposals.pop(0), time.monotonic() + 100, keep)
        late = tune.tune(model, 2, start, lambda best: proposals.pop(0), time.monotonic() - 1, keep)
    with mock.patch.object(tune.kernel_configs, "files", lambda package: directory):
        stored = table()
    return {
        "best": best.sample_warps, "late": late.sample_warps, "kept": kept, "log": log.getvalue(),
        "rows": len(stored), "read": stored[16, 4] == best, "others": all(stored[k] == v for k, v in table().items()),
    }  # fmt: skip


def same() -> list:
    """Return the faults of equal samples, of codes that rounding changes, of other logits and of other codes."""
    model = network("group", num_tokens=6)
    reference = tune.Sequence(model, 40, kernel_configs_for(model.config, 80, torch.bfloat16)).samples()
    reference.logits_MV.fill_(1.0)
    rounded, all_ = reference.codes_BT.clone(), reference.codes_BT + 1
    rounded[0] += 1
    return [
        tune.fault(reference, reference),
        tune.fault(replace(reference, codes_BT=rounded), reference),
        tune.fault(replace(reference, logits_MV=reference.logits_MV * 1.1), reference),
        tune.fault(replace(reference, logits_MV=reference.logits_MV * torch.nan), reference),
        tune.fault(replace(reference, hot_BT=all_), reference),
        tune.fault(replace(reference, codes_BT=all_), reference),
    ]


def pixel_rows() -> list[dict]:
    """Return the rows of the benchmark of pixels with 4x4 codes."""
    rows, options = [], SimpleNamespace(batches=[2], together=[2])
    with mock.patch.dict(pixels.SMALL_VQ, image_size=16), mock.patch.dict(pixels.SMALL_AIM, num_tokens=16):
        pixels.measure(options, CPU, rows.append)
    return rows


def baseline_rows() -> list[dict]:
    """Return the rows of the comparison with the transformer for 4x4 codes, without compilation."""
    options = SimpleNamespace(model="tiny", codes=["16"], batches=["2"], train_codes=64, repeats=1, steps=1)
    options.no_training, options.no_plain, options.no_compile = False, False, True
    return [row | work() for row, work in baseline.jobs(options, CPU)]


def captured() -> list[bool]:
    """Return whether sequences for two seeds are those of the plain decoder, and whether the first is repeated."""
    config = GPTConfig(d_model=16, n_layer=2, n_head=2, vocab_size=40, num_classes=3, num_tokens=9)
    model, labels = random_weights(GPT(config).eval()), torch.tensor([0, 2])
    sequence = CapturedSequence(model, labels, SamplingOptions(cfg_scale=2.0, top_k=20))
    codes = [sequence(seed) for seed in (5, 6, 5)]
    plain = [generate(model, labels, cfg_scale=2.0, top_k=20, decoder="plain", seed=seed) for seed in (5, 6)]
    return [torch.equal(codes[0], plain[0]), torch.equal(codes[1], plain[1]), torch.equal(codes[2], codes[0])]


class Compiling:
    """Pool and result in one object that records the requests."""

    def __init__(self) -> None:
        self.requested = []

    def apply_async(self, work, arguments):
        self.requested.append(arguments)
        return self

    def ready(self):
        return True

    def wait(self, seconds):
        return None


def proposed() -> dict:
    """Return facts about the proposals for AiM-B at 16 images: twice 20 from one seed, and 20 from another."""
    best, configs, requested = table()[768, 32], [], []
    for seed in (1, 1, 2):
        pool = Compiling()
        proposals = tune.Proposals(("AiM-B", 16), pool, 3, seed)
        configs.append([proposals(best) for _ in range(20)])
        requested.append([request for _, request in pool.requested])
    return {
        "again": configs[0] == configs[1], "other": configs[0] != configs[2], "twice": 20 - len(set(configs[0])),
        "best": best in configs[0], "ahead": len(requested[0]) - 20, "in_order": requested[0][:20] == configs[0],
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(dir=os.environ["DIRECTORY"]))
    record.RESULTS = directory
    tiny = AiMConfig(d_model=32, n_layer=1, headdim=16, d_state=16, num_tokens=16, num_classes=3)
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        measured = forms.measure(tiny, 2, CPU, 1)
        with mock.patch.object(sampling, "network", lambda name, device, num_tokens: network("group")):
            row = sampling.codes("AiM-B", 2, 256, CPU, 1, False, 1e9)
        decoding = pixel_rows()
    with contextlib.redirect_stdout(io.StringIO()):
        compared = baseline_rows()
    # Two steps of two kernels that overlap, a pause between them, and something once before and after.
    events = [("copy", 0, 5), ("a", 4, 9), ("b", 8, 11), ("b", 11, 15), ("a", 995, 1004), ("b", 1003, 1006)]
    report = {"kernels": kernels.by_kernel([*events, ("b", 1006, 1010), ("copy", 1010, 1011)], 2)}
    report |= {"proposed": proposed(), "searched": searched(directory), "same": same(), "forms": measured, "row": row}
    report |= {"pixels": decoding, "baseline": compared, "captured": captured()}
    sizes = [baseline.configs(name, 256) for name in ("AiM-B", "AiM-L")]
    report["sizes"] = [[baseline.count(config) for config in pair] for pair in sizes]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
