"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437).

Keys and values of all heads are projected up from one short vector a position, the latent; one rotated key, which all
heads share, carries the positions. The trick: only these two are kept while decoding. A key's product with a query is
then taken in the latent's space (the projection of the keys is absorbed into the query, that of the values follows the
softmax), so that no cached position is projected up again.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.attending import attend
from lit_small_lm.context import Context, Kind
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import EVERY_KIND, Linear, Mixer, Norm, Site, setting


@dataclass(frozen=True, kw_only=True)
class MLA(Mixer):
    """Attention whose keys and values share a short latent; of the shape it takes n_heads, not n_kv_heads or head_dim.

    Canon B spans what the first projections give, queries (or their latent), latent and shared key, before the norms:
    the cache keeps the mixed ones.
    """

    kinds: ClassVar[tuple[Kind, ...]] = EVERY_KIND

    q_rank: int | None = setting(None, low=1, unit="channels")
    """Width of the latent that queries are projected up from; null: queries come from the input itself."""
    kv_rank: int = setting(128, low=1, unit="channels")
    """Width of the latent of keys and values."""
    nope_dim: int = setting(32, low=1, unit="channels")
    """Channels of each head's queries and keys that are not rotated."""
    rope_dim: int = setting(32, low=1, unit="channels")
    """Channels of each head's queries, and of the key all heads share, that know positions."""
    value_dim: int = setting(64, low=1, unit="channels")
    """Channels of each head's values."""
    scale: float | None = setting(None, above=0)
    """Factor on the scores before the softmax; null: 1 / sqrt(nope_dim + rope_dim)."""
    norm: Norm = RMSNorm()
    """Applied to both latents."""

    def build(self, site: Site) -> nn.Module:
        return LatentMixer(self, site)


class LatentMixer(nn.Module):
    """h (B, T, D) -> (B, T, D); R is the latent's width, P that of the rotated channels, V that of a head's values."""

    def __init__(self, spec: MLA, site: Site) -> None:
        super().__init__()
        dim, heads, width = site.dim, site.dims.n_heads, spec.nope_dim + spec.rope_dim
        self.address, self.heads, self.spec = site.address, heads, spec
        self.scale = spec.scale or 1 / math.sqrt(width)
        self.q_proj = self.q_down = self.q_norm = self.q_up = None
        if spec.q_rank is None:
            self.q_proj = Linear(dim, heads * width, role="qkv")
        else:
            self.q_down = Linear(dim, spec.q_rank, role="qkv")
            self.q_norm = spec.norm.build(spec.q_rank)
            self.q_up = Linear(spec.q_rank, heads * width, role="qkv")
        self.kv_down = Linear(dim, spec.kv_rank + spec.rope_dim, role="qkv")
        self.first = spec.q_rank or heads * width
        self.canon = site.tap("B", self.first + spec.kv_rank + spec.rope_dim)
        self.kv_norm = spec.norm.build(spec.kv_rank)
        self.kv_up = Linear(spec.kv_rank, heads * (spec.nope_dim + spec.value_dim), role="qkv", groups=heads)
        self.kv_up.values = slice(spec.nope_dim, None)
        self.rotate = site.positions.rotate(spec.rope_dim) if site.positions else None
        self.o_proj = Linear(heads * spec.value_dim, dim, role="out")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        q, q_turned, latent, key = self.projected(h, ctx)
        if ctx.cache is not None:
            key, latent = ctx.cache.keys_values(self.address, key, latent)
        few = ctx.cache is not None and 2 * h.shape[1] <= key.shape[2]
        out = (self.absorbed if few else self.expanded)(q, q_turned, latent, key, ctx)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (B, H, T, V) -> (B, T, HV) -> (B, T, D)

    def projected(self, h: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h (B, T, D) -> queries (B, H, T, K) and their rotated part (B, H, T, P), latent (B, 1, T, R), shared key
        (B, 1, T, P)."""
        spec, down = self.spec, self.q_proj if self.q_down is None else self.q_down
        joined = self.canon(torch.cat([down(h), self.kv_down(h)], dim=-1), ctx)
        q, latent, key = joined.split([self.first, spec.kv_rank, spec.rope_dim], dim=-1)
        if self.q_up is not None:
            q = self.q_up(self.q_norm(q))
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, K+P)
        q, q_turned = q.split([spec.nope_dim, spec.rope_dim], dim=-1)
        key = key.unsqueeze(1)
        if self.rotate is not None:
            q_turned, key = self.rotate(q_turned, key, ctx)
        return q, q_turned, self.kv_norm(latent).unsqueeze(1), key

    def expanded(self, q: Tensor, q_turned: Tensor, latent: Tensor, key: Tensor, ctx: Context) -> Tensor:
        """Keys and values of every head, as written down in the paper -> (B, H, T, V)."""
        up = self.kv_up(latent.squeeze(1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, S, K+V)
        k, v = up.split([self.spec.nope_dim, self.spec.value_dim], dim=-1)
        k = torch.cat([k, key.expand(-1, self.heads, -1, -1)], dim=-1)  # (B, H, S, K+P)
        return attend(torch.cat([q, q_turned], dim=-1), k, v, ctx, scale=self.scale)

    def absorbed(self, q: Tensor, q_turned: Tensor, latent: Tensor, key: Tensor, ctx: Context) -> Tensor:
        """The same by way of the latent, as one key and value for all heads: for few queries and many keys."""
        up = self.kv_up.weight.unflatten(0, (self.heads, -1))  # (H, K+V, R)
        k_up, v_up = up.split([self.spec.nope_dim, self.spec.value_dim], dim=1)
        q = torch.cat([torch.einsum("bhtk,hkr->bhtr", q, k_up), q_turned], dim=-1)  # (B, H, T, R+P)
        k = torch.cat([latent, key], dim=-1).expand(-1, self.heads, -1, -1)  # (B, H, S, R+P)
        v = latent.expand(-1, self.heads, -1, -1)  # (B, H, S, R)
        out = F.scaled_dot_product_attention(q, k, v, ctx.mask(), scale=self.scale)  # None: one query, all keys
        return torch.einsum("bhtr,hvr->bhtv", out, v_up)
