"""States of torchmetrics that are being filled while a checkpoint is written, of every rank."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

State = dict[str, dict]  # by the metric's name in the module


def metric_states(module: LightningModule) -> State:
    """Metrics that have seen anything since their last reset."""
    metrics = {name: part for name, part in module.named_modules() if isinstance(part, Metric)}
    return {name: _state(metric) for name, metric in metrics.items() if metric._update_count}


def restore_metrics(module: LightningModule, ranks: list[State], rank: int, world_size: int) -> None:
    """Give every rank its own states back; on another number of ranks the first one gets those of all together."""
    if len(ranks) != world_size:
        ranks = [_together(module, ranks), *({} for _ in range(world_size - 1))]
    for name, state in ranks[rank].items():
        metric = module.get_submodule(name)
        for key, value in state["values"].items():
            setattr(metric, key, _to(value, metric.device))
        metric._update_count, metric._computed = state["updates"], None


def _state(metric: Metric) -> dict:
    values = {name: _to(getattr(metric, name), torch.device("cpu")) for name in metric._defaults}
    return {"updates": metric._update_count, "values": values}


def _together(module: LightningModule, ranks: list[State]) -> State:
    """Every metric's states reduced as the metric itself reduces them over ranks."""
    names = {name for states in ranks for name in states}
    return {name: _reduced(module.get_submodule(name), [s[name] for s in ranks if name in s]) for name in names}


def _reduced(metric: Metric, states: list[dict]) -> dict:
    values = {}
    for key, reduction in metric._reductions.items():
        parts = [state["values"][key] for state in states]
        if isinstance(parts[0], list):
            values[key] = [item for part in parts for item in part]
        else:
            values[key] = reduction(torch.stack(parts)) if reduction else parts[0]
    return {"updates": sum(state["updates"] for state in states), "values": values}


def _to(value: Tensor | list, device: torch.device) -> Tensor | list:
    if isinstance(value, list):
        return [item.detach().to(device) for item in value]
    return value.detach().clone().to(device)
