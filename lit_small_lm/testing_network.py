"""Contracts of the parts of a network, tried in a tiny float64 backbone with large weights (see `testing`).

Weights are drawn large so that every branch counts, in float64 so that rounding does not.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Kind, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import EVERY_KIND, FFN, Canon, Dims, Init, Mixer, Norm, NormScheme, Positions, Router, Spec
from lit_small_lm.roles import moving_buffers

TINY = Dims(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, hidden=24)
VOCAB, TIME, BLOCK = 16, 12, 3
TOLERANCE = 1e-5
"""Of the largest value compared: far above float64 rounding, with room for a part that computes in float32."""


def learns_with_finite_gradients(backbone: BackboneSpec, dims: Dims) -> None:
    """Loss and gradients of every parameter are there and finite."""
    for kind in kinds_of(backbone):
        net, tokens = network_for(backbone, dims).train(), tokens_for(backbone)
        nll = net(tokens, context(tokens, kind), tokens)
        require(nll.shape == tokens.shape, f"losses have shape {tuple(nll.shape)}, not {tuple(tokens.shape)}")
        require(bool(torch.isfinite(nll).all()), f"{kind}: the loss is not finite")
        nll.mean().backward()
        for name, parameter in net.named_parameters():
            require(parameter.grad is not None, f"{kind}: {name} gets no gradient")
            require(bool(torch.isfinite(parameter.grad).all()), f"{kind}: the gradient of {name} is not finite")


def never_sees_later_tokens(backbone: BackboneSpec, dims: Dims) -> None:
    """Changing a token leaves the logits before it as they were."""
    if "causal" not in kinds_of(backbone):
        return
    net, tokens = network_for(backbone, dims), tokens_for(backbone)
    before = net(tokens, context(tokens))
    for t in range(1, tokens.shape[1]):
        changed = torch.cat([tokens[:, :t], (tokens[:, t:] + 1) % VOCAB], dim=1)
        after = net(changed, context(changed))
        close(after[:, :t], before[:, :t], f"earlier logits after a change at position {t}")


def keeps_packed_documents_apart(backbone: BackboneSpec, dims: Dims) -> None:
    """Documents of a packed row have no gradient in each other, and score as they do alone."""
    for kind in kinds_of(backbone):
        net, tokens = network_for(backbone, dims), tokens_for(backbone)
        docs = documents(tokens, kind)
        embedded: list[Tensor] = []
        handle = net.embed.register_forward_hook(lambda module, args, x, kept=embedded: kept.append(x))
        packed = net(tokens, context(tokens, kind, docs))
        handle.remove()
        for doc in docs[0].unique():
            own = docs[0] == doc
            leak = torch.autograd.grad(packed[:, own].square().sum(), embedded, retain_graph=True)[0][:, ~own]
            require(not leak.any(), f"{kind}: outputs of document {doc} have a gradient in another")
            alone = net(tokens[:, own], context(tokens[:, own], kind))
            close(packed[:, own], alone, f"{kind}: document {doc} of a packed row against the same document alone")


def decodes_with_a_cache_as_without(backbone: BackboneSpec, dims: Dims) -> None:
    """Decoding by steps and by chunks gives the logits of the whole pass."""
    if "causal" not in kinds_of(backbone):
        return
    net, tokens = network_for(backbone, dims), tokens_for(backbone)
    whole, length = net(tokens, context(tokens)), tokens.shape[1]
    for size in (1, 2, 5):  # a step, less than a convolution reaches back, more than that
        cache, pieces = Cache(length), []
        for piece in tokens.split(size, dim=1):
            pieces.append(net(piece, Context(Visibility.rows(piece, start=cache.length), cache)))
        close(torch.cat(pieces, dim=1), whole, f"logits decoded {size} at a time")


def trains_blocks_as_it_decodes_them(backbone: BackboneSpec, dims: Dims) -> None:
    """One pass over [noisy ; clean] gives the logits of decoding block by block, behind a cache of finished blocks."""
    if not {"block", "doubled"} <= set(kinds_of(backbone)):
        return
    net, tokens = network_for(backbone, dims), tokens_for(backbone)
    noisy, cache, pieces = tokens.roll(1, 0), Cache(tokens.shape[1]), {"noisy": [], "clean": []}
    whole = net(torch.cat([noisy, tokens], dim=1), Context(Visibility.rows(tokens).doubled(BLOCK)))
    for now, finished in zip(noisy.split(BLOCK, dim=1), tokens.split(BLOCK, dim=1), strict=True):
        seen = Visibility.rows(now, kind="block", start=cache.length, block_size=BLOCK)
        for name, piece, memory in (("noisy", now, cache.peek()), ("clean", finished, cache)):
            pieces[name].append(net(piece, Context(seen, memory)))
    for (name, found), wanted in zip(pieces.items(), whole.chunk(2, dim=1), strict=True):
        close(torch.cat(found, dim=1), wanted, f"{name} logits, decoded in blocks of {BLOCK}")


def is_rebuilt_from_the_meta_device(backbone: BackboneSpec, dims: Dims) -> None:
    """A network made on the meta device is whole after `to_empty` and `init_weights`."""
    here = Backbone(backbone, dims, VOCAB)
    with torch.device("meta"):
        there = Backbone(backbone, dims, VOCAB)
    there.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*there.parameters(), *there.buffers()):
            tensor.fill_(math.nan if tensor.is_floating_point() else 0)
    for net in (here, there):
        torch.manual_seed(1)
        net.init_weights()
    wanted, found = here.state_dict(), there.state_dict()
    require(list(found) == list(wanted), "the state dict has other keys when built on the meta device")
    different = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    require(not different, f"init_weights() does not draw {', '.join(different)} anew, from the seed alone")
    tokens, kind = tokens_for(backbone), kinds_of(backbone)[0]
    wanted, found = (net.eval()(tokens, context(tokens, kind)) for net in (here, there))
    close(found, wanted, "logits after to_empty")


def saves_parameters_and_nothing_else(backbone: BackboneSpec, dims: Dims) -> None:
    """The state dict holds parameters, what `Stepped` modules declare, and no derived tensor."""
    net = Backbone(backbone, dims, VOCAB)
    kept = {name for name, _ in net.named_parameters(remove_duplicate=False)} | moving_buffers(net)
    extra = set(net.state_dict()) - kept
    require(not extra, f"the state dict holds derived tensors: {', '.join(sorted(extra))}")


def answers_the_same_twice(backbone: BackboneSpec, dims: Dims) -> None:
    """Two evaluations of one network are equal."""
    net, tokens = network_for(backbone, dims), tokens_for(backbone)
    first, second = (net(tokens, context(tokens, kinds_of(backbone)[0])) for _ in range(2))
    require(torch.equal(first, second), "two evaluations of one network differ")


def network_for(backbone: BackboneSpec, dims: Dims) -> Backbone:
    """A float64 network of this family in evaluation mode, every weight of it large and drawn from one seed."""
    torch.manual_seed(0)
    net = Backbone(backbone, dims, VOCAB).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def tokens_for(backbone: BackboneSpec) -> Tensor:
    """(B, T) random tokens, no longer than the family has positions; an even number of them, for doubled rows."""
    length = min(TIME, backbone.positions.limit() or TIME)
    return torch.randint(VOCAB, (2, max(1, length // 2 * 2)), generator=torch.Generator().manual_seed(1))


def context(tokens: Tensor, kind: Kind = "causal", docs: Tensor | None = None) -> Context:
    """The context of whole rows."""
    return Context(Visibility.rows(tokens, docs, kind, block_size=BLOCK))


def documents(tokens: Tensor, kind: Kind = "causal") -> Tensor:
    """(B, T) three documents a row; those of a doubled row stand in both halves."""
    half = tokens.shape[1] // 2 if kind == "doubled" else tokens.shape[1]
    return (torch.arange(tokens.shape[1]) % half * 3 // half).expand(tokens.shape)


def kinds_of(backbone: BackboneSpec) -> list[Kind]:
    """The visibilities that every part of the family honours; at least one."""
    honoured, refusal = [], ""
    for kind in EVERY_KIND:
        try:
            backbone.refuse_kind(kind)
            honoured.append(kind)
        except RequestError as error:
            refusal = str(error)
    require(bool(honoured), refusal)
    return honoured


def require(holds: bool, otherwise: str) -> None:
    """Raise AssertionError with the text `otherwise` unless it holds; unlike `assert`, also under `python -O`."""
    if not holds:
        raise AssertionError(otherwise)


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    """Require two tensors to be equal within `TOLERANCE` of the largest value wanted."""
    require(found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    worst, largest = (found - wanted).abs().max().item(), wanted.abs().max().item()
    require(worst <= TOLERANCE * max(largest, 1e-3), f"{what}: off by {worst:.2g} where values reach {largest:.2g}")


def _mixture(router: Router) -> MoE:
    """Experts for a router to choose from; twice as many as it chooses."""
    return MoE(expert=GatedMLP(), router=router, n_experts=2 * router.top_k, expert_hidden=8)


NETWORK = (
    learns_with_finite_gradients,
    never_sees_later_tokens,
    keeps_packed_documents_apart,
    decodes_with_a_cache_as_without,
    trains_blocks_as_it_decodes_them,
    is_rebuilt_from_the_meta_device,
    saves_parameters_and_nothing_else,
    answers_the_same_twice,
)
SURROUNDINGS: dict[type[Spec], Callable[..., BackboneSpec]] = {
    BackboneSpec: lambda spec: spec,
    LayerSpec: lambda spec: BackboneSpec(layer=spec),
    NormScheme: lambda spec: BackboneSpec(norm=spec),
    Norm: lambda spec: BackboneSpec(norm=PreNorm(norm=spec)),
    Positions: lambda spec: BackboneSpec(positions=spec),
    Init: lambda spec: BackboneSpec(init=spec),
    Mixer: lambda spec: BackboneSpec(layer=LayerSpec(mixer=spec)),
    FFN: lambda spec: BackboneSpec(layer=LayerSpec(ffn=spec)),
    Canon: lambda spec: BackboneSpec(layer=LayerSpec(canon=spec, canon_at="ABCD")),
    Router: lambda spec: BackboneSpec(layer=LayerSpec(ffn=_mixture(spec))),
}
