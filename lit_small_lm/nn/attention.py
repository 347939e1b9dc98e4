"""Attention: multi-head, grouped-query (arXiv 2305.13245) and multi-query, by the fastest kernel there is.

Who sees whom comes from the Visibility. `plain_attention` is the oracle.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.attending import attend
from lit_small_lm.context import Context, Kind
from lit_small_lm.plugin import EVERY_KIND, Linear, Mixer, Norm, Site, setting


@dataclass(frozen=True, kw_only=True)
class Attention(Mixer):
    """Softmax attention over what the Visibility shows; heads and key/value heads come from the shape."""

    kinds: ClassVar[tuple[Kind, ...]] = EVERY_KIND

    shift: Literal["bias", "qkv", "none"] = "none"
    """Biases of all projections, of those to queries, keys and values only (Qwen 2), or of none."""
    window: int | None = setting(None, low=1, unit="positions")
    """Visible keys, the query included; null: all."""
    scale: float | None = setting(None, above=0)
    """Factor on the scores before the softmax; null: 1 / sqrt(head_dim)."""
    qk_norm: Norm | None = None
    """Applied to queries and keys before they are rotated (arXiv 2302.05442); null: none."""
    qk_norm_over: Literal["head", "width"] = "head"
    """What `qk_norm` spans: each head by itself with one gain for all (Qwen 3), or all heads at once (OLMo 2)."""
    v_norm: Norm | None = None
    """Applied to the values of each head, with one gain for all (with `qk_norm`: QKV-norm, arXiv 2503.04598); null:
    none."""
    value_residual: Literal["learned", "none"] = "none"
    """Whether values are mixed with those of the first attention, by two learned weights that start at a half (arXiv
    2410.17897)."""
    dropout: float = setting(0.0, low=0, below=1, unit="probability")
    """On the output, while training."""
    attention_dropout: float = setting(0.0, low=0, below=1, unit="probability")
    """On the attention weights, while training."""

    def build(self, site: Site) -> nn.Module:
        return AttentionMixer(self, site)


class AttentionMixer(nn.Module):
    """h (B, T, D) -> (B, T, D) through one fused projection, for each key/value head to its queries, its key and its
    value; Canon B spans all three."""

    def __init__(self, spec: Attention, site: Site) -> None:
        super().__init__()
        dims = site.dims
        self.address, self.window, self.scale = site.address, spec.window, spec.scale
        self.dropout, self.attention_dropout = spec.dropout, spec.attention_dropout
        self.head_dim, self.queries = dims.head_dim, dims.n_heads // dims.n_kv_heads
        width = (dims.n_heads + 2 * dims.n_kv_heads) * dims.head_dim
        self.qkv_proj = Linear(dims.dim, width, role="qkv", bias=spec.shift != "none", groups=dims.n_kv_heads)
        self.qkv_proj.values = slice((self.queries + 1) * dims.head_dim, None)
        self.canon = site.tap("B", width)
        self.q_norm = _norm_of(spec, dims.n_heads, dims.head_dim)
        self.k_norm = _norm_of(spec, dims.n_kv_heads, dims.head_dim)
        self.v_norm = None if spec.v_norm is None else spec.v_norm.build(dims.head_dim)
        self.mix_values = None if spec.value_residual == "none" else ValueMix(site.layer)
        self.rotate = site.positions.rotate(dims.head_dim) if site.positions else None
        self.o_proj = Linear(dims.n_heads * dims.head_dim, dims.dim, role="out", bias=spec.shift == "bias")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        q, k, v = self.heads(self.canon(self.qkv_proj(h), ctx))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.v_norm is not None:
            v = self.v_norm(v)
        if self.mix_values is not None:
            v = self.mix_values(v, ctx)
        if self.rotate is not None:
            q, k = self.rotate(q, k, ctx)
        if ctx.cache is not None:
            k, v = ctx.cache.keys_values(self.address, k, v)
        chance = self.attention_dropout if self.training else 0.0
        out = attend(q, k, v, ctx, self.window, self.scale, chance)
        out = out.transpose(1, 2).flatten(2)  # (B, H, T, K) -> (B, T, HK)
        out = self.o_proj(out)
        return F.dropout(out, self.dropout) if self.training else out

    def heads(self, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, (H+2G)K) -> q (B, H, T, K), k and v (B, G, T, K).

        Every key/value head lies behind the queries that read it, so that a contiguous piece holds whole groups.
        """
        groups = joined.unflatten(-1, (-1, self.queries + 2, self.head_dim))  # (B, T, G, H/G+2, K)
        q, k, v = groups.split_with_sizes((self.queries, 1, 1), dim=3)
        return q.permute(0, 2, 3, 1, 4).flatten(1, 2), k.squeeze(3).transpose(1, 2), v.squeeze(3).transpose(1, 2)


def _norm_of(spec: Attention, heads: int, head_dim: int) -> nn.Module | None:
    """The norm of queries or keys (B, heads, T, K)."""
    if spec.qk_norm is None:
        return None
    return spec.qk_norm.build(head_dim) if spec.qk_norm_over == "head" else AcrossHeads(spec.qk_norm, heads * head_dim)


class AcrossHeads(nn.Module):
    """(B, H, T, K) -> the same, normed over all heads of a position at once."""

    def __init__(self, norm: Norm, width: int) -> None:
        super().__init__()
        self.norm = norm.build(width)

    def forward(self, h: Tensor) -> Tensor:
        joined = self.norm(h.transpose(1, 2).flatten(2))  # (B, T, HK)
        return joined.unflatten(2, (h.shape[1], -1)).transpose(1, 2)


class ValueMix(nn.Module):
    """own * v + first * v1, where v1 (B, G, T, K) are the values of the attention that ran first; they are kept in the
    trace. Layer 0 only keeps them."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((2,), 0.5)) if layer else None

    def reset_parameters(self) -> None:
        """As much of its own as of the first values."""
        nn.init.constant_(self.weights, 0.5)

    def forward(self, v: Tensor, ctx: Context) -> Tensor:
        first = ctx.trace.once("first values", lambda: v)
        if self.weights is None:
            return v
        return self.weights[0] * v + self.weights[1] * first


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """The plain twin: q (B, H, T, K), k and v (B, G, S, K), mask (B, 1, T, S) of booleans -> (B, H, T, K)."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)  # (B, H, S, K)
    scores = q @ k.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    return F.dropout(torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1), dropout) @ v
