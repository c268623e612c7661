"""AiM against the transformer baseline at equal parameters: training images/s, and seconds per sampled image.

python benchmarks/baseline.py [--model AiM-B] [--codes 64,256,1024] [--batches 1,16,64] [--train_codes 32768]
    [--no_training] [--no_plain] [--no_compile] [--repeats 3] [--steps 8] [--seconds 300]

The transformer has AiM's width, heads of 64 channels, a tied head, and the layers and MLP width that are nearest to
AiM's parameters. Random weights, no dropout, bfloat16 on a GPU and float32 for sampling on a CPU. --model tiny is for a
CPU. Writes benchmarks/results/baseline_HARDWARE_DATE.json and a table of the same name, after each row. Measurements
that would start after --seconds are left out.

- training: forward, backward, clipping and AdamW on --train_codes codes per step, mean of --steps. AiM has Triton
  kernels on a GPU; the transformer has PyTorch's, eagerly and with each block compiled by torch.compile.
- sampling: all codes of a batch with guidance 2 and without filters, median of --repeats.
  - fast: AiM's fast decoder (own kernels, CUDA graphs).
  - captured: steps of the transformer with a key-value cache, each block compiled, as CUDA graphs (captured.py).
  - plain: steps of either network, which Python launches one by one; a single call, measured last.
"""

import argparse
import gc
import statistics
import time
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from captured import CapturedSequence
from record import hardware
from sampling import Row, keep, peak, reset_peak, synchronize, timed
from training import time_steps, training_step, words

from aim_lightning.models import NETWORKS, AiMConfig, AutoregressiveNetwork, GPTConfig
from aim_lightning.models.gpt.block import KeyValueCache
from aim_lightning.sampling import SamplingOptions, generate, release_decoders

TINY = {"d_model": 128, "n_layer": 4, "vocab_size": 256, "num_classes": 10, "headdim": 32, "d_state": 32}
HEAD = 64  # channels of an attention head, as in LlamaGen
UNIT = 64  # the MLP's width is a multiple of it, for tensor cores
SAMPLING = SamplingOptions(cfg_scale=2.0)
PLAIN_WARM_UP = 8  # steps; a call takes seconds
Config = AiMConfig | GPTConfig


def configs(name: str, num_tokens: int) -> tuple[AiMConfig, GPTConfig]:
    """Return the configurations of AiM and of the transformer with about as many parameters."""
    sizes = {"num_tokens": num_tokens}
    aim = AiMConfig(**TINY, **sizes) if name == "tiny" else AiMConfig.preset(name, **sizes)
    shared = {key: getattr(aim, key) for key in ("d_model", "vocab_size", "num_classes", "num_tokens")}
    shared |= {"n_head": aim.d_model // HEAD, "tie_embeddings": True}
    shared |= dict.fromkeys(("token_dropout", "mixer_dropout", "mlp_dropout"), 0.0)
    target, one, two = (
        count(config) for config in (aim, GPTConfig(**shared, n_layer=1), GPTConfig(**shared, n_layer=2))
    )
    gpt = GPTConfig(**shared, n_layer=max(1, 1 + round((target - one) / (two - one))))
    # The rest by the width of the MLP, which has three matrices.
    units = round((target - count(gpt)) / (3 * gpt.d_model * gpt.n_layer * UNIT))
    return aim, replace(gpt, d_intermediate=gpt.mlp_width + UNIT * units)


def count(config: Config) -> int:
    """Return the number of parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in NETWORKS[type(config)](config).parameters())


def build(config: Config, device: torch.device) -> AutoregressiveNetwork:
    """Build a network with random weights."""
    gc.collect()  # the previous one
    if device.type == "cuda":
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    with device:
        return NETWORKS[type(config)](config)


def compile_blocks(network: AutoregressiveNetwork, dynamic: bool) -> None:
    """Compile the blocks, which share one compilation; with `dynamic` also for all numbers of keys."""
    for layer in network.backbone.layers:
        layer.compile(dynamic=dynamic)


def train(config: Config, device: torch.device, is_compiled: bool, codes: int, steps: int) -> Row:
    """Measure training on about `codes` codes per step."""
    network, batch = build(config, device), max(1, codes // config.num_tokens)
    if is_compiled:
        compile_blocks(network, dynamic=False)
    reset_peak(device)
    row = {"parameters": count(config), "layers": config.n_layer, "backend": network.backend}
    return row | time_steps(network, training_step(network, batch), batch, steps)


def sample(config: Config, device: torch.device, decoder: str, is_compiled: bool, batch: int, repeats: int) -> Row:
    """Measure sampling with `fast`, `captured` or `plain`; first_s includes compilation and captures."""
    network, labels = build(config, device).eval(), torch.arange(batch) % config.num_classes
    if device.type == "cuda" and decoder != "fast":  # that one converts its copy of the weights
        network.to(torch.bfloat16)
    if is_compiled:
        compile_blocks(network, dynamic=True)
    reset_peak(device)
    start, row = time.perf_counter(), {"parameters": count(config), "layers": config.n_layer, "batch": batch}
    work = partial(generate, network, labels, decoder=decoder, cfg_scale=SAMPLING.cfg_scale)
    if decoder == "plain":
        CapturedSequence(network, labels, SAMPLING, graph=False).advance(0, PLAIN_WARM_UP)
    else:
        work = CapturedSequence(network, labels, SAMPLING) if decoder == "captured" else work
        work()
    synchronize(device)
    row["first_s"] = time.perf_counter() - start
    row["seconds"] = statistics.median(timed(work, device, 1 if decoder == "plain" else repeats, warm_up=0))
    row |= {"seconds_per_image": row["seconds"] / batch, "images_per_s": batch / row["seconds"], **peak(device)}
    release_decoders(network)
    return row


def jobs(options: argparse.Namespace, device: torch.device) -> list[tuple[Row, partial]]:
    """Return what to measure in turn: the identity of each row, and a function that returns its values."""
    sizes = {length: configs(options.model, length) for length in map(int, options.codes)}
    compiled, result = not options.no_compile, []

    def add(what: str, length: int, config: Config, method: str, work: partial) -> None:
        row = {"what": what, "network": NETWORKS[type(config)].__name__, "codes": length, "method": method}
        result.append((row, work))

    trained = {} if options.no_training else sizes
    for length, config in ((length, config) for length, pair in trained.items() for config in pair):
        for is_compiled in (False, True) if compiled and isinstance(config, GPTConfig) else (False,):
            add("training", length, config, "compiled" if is_compiled else "eager", partial(
                train, config, device, is_compiled, options.train_codes, options.steps
            ))  # fmt: skip
    for decoder, (length, pair), batch in product(("fast", "plain"), sizes.items(), map(int, options.batches)):
        for config in pair if decoder == "fast" or not options.no_plain else ():
            name = "captured" if decoder == "fast" and isinstance(config, GPTConfig) else decoder
            add("sampling", length, config, name, partial(
                sample, config, device, name, compiled and name == "captured", batch, options.repeats
            ))  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="AiM-B", help="preset of AiM, or tiny")
    parser.add_argument("--codes", type=words, default=words("64,256,1024"), help="codes per image, square numbers")
    parser.add_argument("--batches", type=words, default=words("1,16,64"), help="images sampled at a time")
    parser.add_argument("--train_codes", type=int, default=32768, help="codes per training step")
    parser.add_argument("--repeats", type=int, default=3, help="calls behind each median of sampling")
    parser.add_argument("--steps", type=int, default=8, help="timed training steps")
    parser.add_argument("--no_training", action="store_true", help="measure sampling only")
    parser.add_argument("--no_plain", action="store_true", help="leave the plain decoders out")
    parser.add_argument("--no_compile", action="store_true", help="do not compile the transformer")
    parser.add_argument("--seconds", type=float, default=300, help="after which no measurement starts")
    options, start, rows = parser.parse_args(), time.monotonic(), []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else blocks would run without compilation
    # Outside the compiled code: its counter would cause a compilation for every length.
    KeyValueCache.append = torch.compiler.disable(KeyValueCache.append)
    waiting = jobs(options, device)
    for number, (row, work) in enumerate(waiting):
        if time.monotonic() - start > options.seconds:
            print(f"stopped after {options.seconds:g} s; not measured: {[row for row, _ in waiting[number:]]}")
            break
        try:
            keep(rows, row | work(), "baseline")
        except torch.cuda.OutOfMemoryError:
            keep(rows, row | {"out_of_memory": True}, "baseline")
    print(f"{hardware()}: {len(rows)} measurements in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
