"""Backends: the choice and its log line, and agreement with mamba-ssm's code on a CPU."""

import logging
from types import SimpleNamespace
from unittest import mock

import mamba_reference
import pytest
import torch
from helpers import TINY, assert_user_error, random_aim, relative, script_output

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.backends import choose
from aim_lightning.sampling import generate
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log_once

TOOK_TORCH = "backend auto took torch: the weights are on the CPU, its kernels need an NVIDIA GPU"
TOOK_MAMBA = (
    "backend auto took mamba_ssm: its kernels are installed, and triton cannot be used: "
    "it needs an NVIDIA GPU from Ampere on"
)
CODES, LABELS = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


@pytest.fixture(scope="module")
def differences() -> dict:
    """Return the relative differences from mamba-ssm's code."""
    if not mamba_reference.available():
        pytest.skip("mamba-ssm's source is not unpacked: make install-dev")
    return script_output("models/mamba_on_cpu.py", timeout=300)


@pytest.mark.parametrize("part", ["scan", "step", "step_state", "mixer", "mlp"])
def test_plain_code_equals_mamba_ssm_references(differences, part):
    assert differences[part] <= 2e-6


@pytest.mark.parametrize("path", ["fused", "one image per call", "unfused in_proj", "unfused convolution"])
def test_kernels_equal_plain_code(differences, path):
    result = differences[path]
    assert result["backend"] == "mamba_ssm"
    assert result["fused"] == (not path.startswith("unfused"))
    assert result["forward"] <= 5e-6
    assert result["decoding"] <= 5e-6
    assert result["gradients"] <= 5e-5


def test_where_the_fused_path_is_not_taken(differences):
    assert differences["refusals"] == {
        "d_conv 1": "causal-conv1d has no kernel for d_conv 1",
        "d_conv 2": None,
        "d_conv 4": None,
        "d_conv 5": "causal-conv1d has no kernel for d_conv 5",
        "not installed": "causal-conv1d cannot be imported",
    }


def step(model):
    return model.step(None, -1, model.backbone.condition(LABELS), model.new_states(1))


USES = {
    "forward": lambda model: model(CODES, LABELS),
    "step": step,
    "sampling": lambda model: generate(model, LABELS),
    "compiled": lambda model: (model.compile(backend="eager"), model(CODES, LABELS)),
}


@pytest.fixture
def messages(caplog):
    """Return a function that lists the messages logged since then."""
    log_once.cache_clear()
    caplog.set_level(logging.INFO, logger="aim_lightning")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_auto_logs_its_choice_once_at_the_first_use(messages, use):
    model = AiM(TINY).eval().to(torch.bfloat16).to("cpu").float()
    assert model.backend == "torch" and not messages()  # it may still be moved to a GPU
    use(model)
    use(model)
    assert model.backend == "torch" and messages() == [TOOK_TORCH]


@pytest.fixture
def kernels(monkeypatch):
    """Replace the backend on mamba-ssm, as if that were installed."""
    backend = SimpleNamespace(name="mamba_ssm", kernels="fused", mix=None, step=None, add_norm=None)
    monkeypatch.setattr(choose, "missing", lambda: None)
    monkeypatch.setattr(choose, "launcher_fault", lambda device: None)
    monkeypatch.setattr(choose, "_mamba", lambda config: backend)
    return backend


def test_auto_on_a_gpu(messages, kernels):
    backend = choose.choose_backend("auto", TINY, torch.device("cuda"), torch.bfloat16)
    assert backend is kernels
    assert messages() == [TOOK_MAMBA]


def test_auto_prefers_triton(messages, monkeypatch, kernels):
    monkeypatch.setattr(choose, "_triton_refusal", lambda config, device, dtype: None)
    backend = choose.choose_backend("auto", TINY, torch.device("cuda"), torch.bfloat16)
    assert backend.name == "triton" and backend.other is kernels
    assert messages() == ["backend auto took triton: the weights are on an NVIDIA GPU; mamba_ssm decodes step by step"]


def test_a_machine_without_a_c_compiler_trains_on_plain_pytorch(messages, monkeypatch):
    from triton.runtime import driver

    build = mock.Mock(**{"get_current_target.side_effect": RuntimeError("Failed to find C compiler.\nSet CC")})
    monkeypatch.setattr(type(driver), "active", build)
    monkeypatch.setattr(choose, "missing", lambda: None)
    choose.launcher_fault.cache_clear()
    assert choose.choose_backend("auto", TINY, torch.device("cuda"), torch.bfloat16).name == "torch"
    reason = "Triton needs a C compiler and Python's headers (Failed to find C compiler.)"
    assert messages() == [f"backend auto took torch: {reason}"]
    choose.launcher_fault.cache_clear()


CASES = [
    (torch.float32, "mamba-ssm is not usable (no module); install it", "mamba-ssm is not usable (no module)"),
    (torch.float64, None, "it has no kernels for torch.float64"),
]


@pytest.mark.parametrize(("dtype", "missing", "reason"), CASES)
def test_auto_on_a_gpu_without_the_kernels_is_never_silent(messages, monkeypatch, dtype, missing, reason):
    monkeypatch.setattr(choose, "missing", lambda: missing)
    for _ in range(2):
        assert choose.choose_backend("auto", TINY, torch.device("cuda"), dtype).name == "torch"
    assert len(messages()) == 1 and messages()[0].startswith(f"backend auto took torch: {reason}")


def test_moved_to_a_gpu_it_logs_that_choice_alone(messages, monkeypatch, kernels):
    model = AiM(TINY).to(torch.bfloat16)
    on_gpu = mock.PropertyMock(return_value=torch.device("cuda"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Parameter, "device", on_gpu, raising=False)
        model.to(torch.float32)
        assert model.backend == "mamba_ssm"
        assert messages() == [TOOK_MAMBA]
    model.to("cpu")
    assert model.backend == "torch" and len(messages()) == 1
    model(CODES, LABELS)
    assert messages()[1:] == [TOOK_TORCH]


def test_a_backend_that_is_not_available_is_an_error(monkeypatch):
    assert_user_error("backend is 'cuda'; use auto, torch, mamba_ssm, triton", AiM, TINY, backend="cuda")
    monkeypatch.setattr(choose, "missing", lambda: "mamba-ssm is not usable (No module named 'mamba_ssm'); install it")
    assert_user_error("cannot be used: mamba-ssm is not usable", AiM, TINY, backend="mamba_ssm")


def test_mamba_ssm_on_a_cpu_is_refused_at_use(monkeypatch):
    monkeypatch.setattr(choose, "missing", lambda: None)
    model = AiM(TINY, backend="mamba_ssm")
    assert model.backend == "mamba_ssm"
    with pytest.raises(UserError, match=r"CPU, its kernels need an NVIDIA GPU; use it on .* or choose backend: torch"):
        model(CODES, LABELS)


def test_parameters_that_must_stay_exact_do_in_bf16():
    model = AiM(TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for converted in (model.to(torch.bfloat16), model.half()):
        for name, value in converted.state_dict().items():
            exact = name.endswith(("A_log", "dt_bias", "mixer.D"))
            assert value.dtype == torch.float32 if exact else value.dtype in (torch.bfloat16, torch.float16)
            assert not exact or torch.equal(value, before[name])
    logits = AiM(TINY).to(torch.bfloat16)(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]))
    assert logits.dtype == torch.bfloat16
    assert model.double().backbone.layers[0].mixer.A_log.dtype == torch.float64


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_device_without_float64_is_refused_at_use(name):
    backend = choose.choose_backend(name, TINY, torch.device("mps"), torch.float32)
    with pytest.raises(UserError, match="backend torch cannot be used: its scan needs float64, which MPS lacks"):
        backend.add_norm(torch.zeros(1), None, torch.nn.Identity())


def test_float64_and_back_is_float32_everywhere():
    model = AiM(TINY).double().float()
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    mixer = AiM(TINY).double().to(torch.bfloat16).backbone.layers[0].mixer
    assert (mixer.A_log.dtype, mixer.in_proj.weight.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(mixer.D, torch.ones(len(mixer.D)))


def test_a_float64_network_decodes_in_float64():
    model, labels = random_aim(seed=0), torch.tensor([0, 1, 2, 0])
    codes, wide = generate(model, labels, cfg_scale=2.0), model.double()
    assert torch.equal(generate(wide, labels, cfg_scale=2.0), codes)
    condition, states = wide.backbone.condition(labels), wide.new_states(4)
    steps = [wide.step(codes[:, t - 1] if t else None, t - 1, condition, states) for t in range(4)]
    assert relative(torch.stack(steps, 1), wide(codes[:, :-1], labels)) <= 1e-13
    assert {state.ssm_BHPN.dtype for state in AiM(TINY).to(torch.bfloat16).new_states(1)} == {torch.float32}


def test_presets():
    assert AiMConfig.preset("AiM-B") == AiMConfig()
    changed = AiMConfig.preset("AiM-L", num_classes=10)
    assert (changed.d_model, changed.n_layer, changed.adaln, changed.num_classes) == (1024, 48, "group", 10)
    assert_user_error("there is no preset 'AiM-S'; use one of AiM-B", AiMConfig.preset, "AiM-S")
    with pytest.raises(TypeError, match="depth"):
        AiMConfig.preset("AiM-B", depth=3)
