"""One step of the fast decoder in plain PyTorch: the CPU's fast path, and the reference of the kernels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast.buffers import Buffers, LayerCache
from aim_lightning.sampling.fast.static_weights import LayerWeights, StaticWeights
from aim_lightning.sampling.filters import Filters, diverged, guide, sample_codes

EPS = 1e-5


class TorchStep:
    """Compute one more code for every image when called; the step is `buffers.step`."""

    def __init__(self, config: AiMConfig, weights: StaticWeights, buffers: Buffers) -> None:
        self.config, self.weights, self.buffers = config, weights, buffers

    def prepare(self) -> None:
        """Do nothing: each step computes its own input."""

    def __call__(self) -> None:
        buffers, step = self.buffers, int(self.buffers.step)
        residual, x = self._enter(step), None
        for i, (weights, cache) in enumerate(zip(self.weights.layers, buffers.layers, strict=True)):
            rows = None if buffers.layer_rows is None else buffers.layer_rows[i]
            residual = residual if x is None else residual + x
            h = _modulate(_norm(residual, weights.norm), rows)
            x = self._mix(h.to(buffers.dtype), weights, cache, step).float()
            x = x if rows is None else x * rows[:, 2].float()
        h = _norm(_norm(residual + x, self.weights.norm_f), self.weights.norm_final)
        h = _modulate(h, None if buffers.final_rows is None else buffers.final_rows[0])
        self._sample(F.linear(h.to(buffers.dtype).float(), self.weights.words.float()), step)
        buffers.step += 1

    def _enter(self, step: int) -> Tensor:
        buffers, weights = self.buffers, self.weights
        if step == 0:
            return buffers.start_MD.float()
        codes_M = buffers.codes_BT[:, step - 1].repeat(buffers.rows // buffers.images)
        x = weights.words[codes_M].float()
        return x if weights.positions is None else x + weights.positions[step - 1 + int(buffers.offset)].float()

    def _mix(self, h_MD: Tensor, weights: LayerWeights, cache: LayerCache, step: int) -> Tensor:
        config = self.config
        z, xbc, dt = F.linear(h_MD, weights.in_proj).split((config.d_inner, config.conv_dim, config.nheads), dim=-1)
        x, b, c = _conv(xbc, weights, cache, step).split((config.d_inner, config.d_state, config.d_state), dim=-1)
        # L, the running log decay, and g = log dt - L for every code: exp(L_t + g_s) is the weight of code s at step t.
        dt_MH = F.softplus(dt.float() + weights.dt_bias)
        previous = cache.decay_MH if step else torch.zeros_like(cache.decay_MH)
        cache.decay_MH.copy_(previous - (dt_MH * weights.a_log.exp()).to(previous.dtype))
        cache.x_MTI[:, step], cache.b_MTN[:, step] = x.to(cache.x_MTI.dtype), b.to(cache.b_MTN.dtype)
        cache.g_MHT[:, :, step] = dt_MH.log().to(previous.dtype) - cache.decay_MH
        # The state is never formed: y is a weighted sum of the stored inputs.
        y_MHP = _dual(c, cache, step + 1, config) + weights.d[:, None] * x.unflatten(-1, (config.nheads, -1))
        gated = y_MHP.flatten(1) * F.silu(z.float())
        y = (_norm(gated, weights.gated_norm)).to(self.buffers.dtype)
        return F.linear(y, weights.out_proj)

    def _sample(self, logits_MV: Tensor, step: int) -> None:
        buffers = self.buffers
        if buffers.guided:
            cond_BV, uncond_BV = logits_MV.chunk(2)
            scale = float(buffers.scale_T[step])
            logits_MV = cond_BV if scale == 1 else guide(cond_BV, uncond_BV, scale)
        buffers.diverged |= diverged(logits_MV)
        # Read back from the buffers, as the kernels do: this step is their reference.
        filters = Filters(float(buffers.temperature), int(buffers.top_k), float(buffers.top_p))
        buffers.codes_BT[:, step] = sample_codes(logits_MV, buffers.uniform_BT[:, step], filters)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def _modulate(h: Tensor, rows_MRD: Tensor | None) -> Tensor:
    return h if rows_MRD is None else h * (1 + rows_MRD[:, 1].float()) + rows_MRD[:, 0].float()


def _conv(xbc_MK: Tensor, weights: LayerWeights, cache: LayerCache, step: int) -> Tensor:
    """Convolve causally in float32 and apply SiLU; the raw input goes into the ring."""
    taps = len(cache.ring)
    cache.ring[step % taps] = xbc_MK
    y = weights.conv_bias
    for back in range(min(taps, step + 1)):
        y = y + cache.ring[(step - back) % taps].float() * weights.conv_weight[taps - 1 - back]
    return F.silu(y)


def _dual(c_MN: Tensor, cache: LayerCache, count: int, config: AiMConfig) -> Tensor:
    """Return y_MHP from the inputs of the first `count` codes: scores times decay, one product per row and head."""
    scores_MT = torch.bmm(cache.b_MTN[:, :count].float(), c_MN[..., None])[..., 0]
    decay_MHT = (cache.decay_MH[..., None] + cache.g_MHT[..., :count]).float().exp()
    x_MHTP = cache.x_MTI[:, :count].unflatten(-1, (config.nheads, -1)).transpose(1, 2).float()
    return torch.matmul((decay_MHT * scores_MT[:, None])[:, :, None], x_MHTP)[:, :, 0]
