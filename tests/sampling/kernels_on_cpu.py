"""The fast decoder's Triton kernels through Triton's interpreter; prints one JSON object.

A process of its own, because the interpreter must be chosen before anything imports triton.
"""

import json

import torch

from aim_lightning.models import AiM, AiMConfig

OPTIONS = [
    {"top_k": 1},
    {},
    {"top_k": 10, "temperature": 1.3},
    {"top_k": 20, "top_p": 0.8, "temperature": 0.9},
    {"top_p": 0.5},
    {"top_p": 0.05},
    {"top_k": 100, "top_p": 0.999, "temperature": 0.5},
]


def network(adaln: str, seed: int = 0, **sizes) -> AiM:
    """A small network whose codes vary."""
    torch.manual_seed(seed)
    default = {"d_model": 16, "n_layer": 2, "num_tokens": 9, "headdim": 16, "d_state": 16, "vocab_size": 40}
    model = AiM(AiMConfig(num_classes=3, adaln=adaln, num_groups=2, **{**default, **sizes})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def codes_equal(adaln: str, guided: bool) -> bool:
    """Whole sequences, kernels against plain PyTorch."""
    from aim_lightning.sampling.fast.decoder import FastDecoder
    from aim_lightning.sampling.fast.triton_step import TritonStep

    model, labels = network(adaln, num_tokens=5), torch.tensor([1])
    uniform = torch.rand(1, 5, dtype=torch.float64)
    options = {"scales": [2.0] * 5, "temperature": 1.0, "top_k": 10, "top_p": 0.9}
    decoder = FastDecoder(model, 1, guided, torch.float32)
    expected = decoder.run(model, labels, uniform, **options)
    for value in (*vars(decoder.buffers.layers[0]).values(), decoder.buffers.codes_BT):
        value.fill_(-1)  # nothing of the first run helps the second
    decoder._step = TritonStep(model.config, decoder.weights, decoder.buffers)
    return torch.equal(decoder.run(model, labels, uniform, **options), expected)


def drawn(top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0) -> tuple[float, int]:
    """(share of equal codes, the step afterwards); a third of the rows has equal logits."""
    from aim_lightning.sampling.fast import kernels
    from aim_lightning.sampling.filters import choose, guide

    images, vocabulary = 24, 60
    logits = torch.randn(2 * images, vocabulary) * 3
    logits[:8] = logits[:8].round()
    logits[images : images + 8] = logits[:8]
    uniform = torch.rand(images, 3, dtype=torch.float64)
    codes, step = torch.zeros(images, 3, dtype=torch.int64), torch.tensor(1, dtype=torch.int32)
    scalars = (torch.tensor([temperature]), torch.tensor([top_k], dtype=torch.int32), torch.tensor([top_p]))
    done = torch.zeros((), dtype=torch.int32)
    kernels.choose_kernel[(images,)](
        logits,
        codes,
        step,
        done,
        uniform,
        torch.full((3,), 2.0),
        *scalars,
        vocabulary,
        3,
        images,
        GUIDED=True,
        BLOCK=64,
    )
    expected = choose(guide(*logits.chunk(2), 2.0), uniform[:, 1], temperature, top_k, top_p)
    return (codes[:, 1] == expected).float().mean().item(), int(step)


def main() -> None:
    import mamba_reference

    mamba_reference.interpret()
    torch.set_num_threads(1)
    results = [drawn(**options) for options in OPTIONS]
    report = {
        "codes": [codes_equal("group", True), codes_equal("none", False)],
        "drawn": [share for share, _ in results],
        "steps": [step for _, step in results],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
