"""Contracts of samplers, tried on a tiny float64 network (see `testing`)."""

import torch
from torch import Tensor

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Decoding, Dims, Sampler, Specials
from lit_small_lm.testing_network import VOCAB, network_for, require

SPECIALS = Specials(VOCAB, end=0, pad=1, mask=2)


class _Counted:
    """A network that counts its evaluations."""

    def __init__(self, net: Backbone) -> None:
        self.net, self.calls = net, 0

    def __call__(self, *args, **kwargs) -> Tensor:
        self.calls += 1
        return self.net(*args, **kwargs)


def extends_the_prompt_and_counts(spec: Sampler, dims: Dims) -> None:
    """A sampler keeps the prompt, draws what it may, and counts evaluations, under every visibility it declares."""
    for decoding in _decodings(spec):
        net, prompt, calls = _Counted(network_for(BackboneSpec(), dims)), torch.randint(3, VOCAB, (2, 4)), 0
        for frame in spec.frames(net, prompt, 6, 7, SPECIALS, decoding):
            new = frame.tokens[:, 4:]
            require(torch.equal(frame.tokens[:, :4], prompt), "the prompt has changed")
            require(new.shape[1] <= 6, f"{new.shape[1]} new tokens where 6 were asked for")
            require(frame.nfe == net.calls >= calls, f"{frame.nfe} evaluations counted, {net.calls} made")
            calls = frame.nfe
        require(calls > 0 and new.shape[1] > 0, "no text was drawn")
        require(bool(((new >= 0) & (new < VOCAB)).all()), "ids outside the vocabulary were drawn")
        require(not torch.isin(new, torch.tensor([1, 2])).any(), "padding or mask was drawn")


def draws_the_same_text_from_the_same_key(spec: Sampler, dims: Dims) -> None:
    """Draws are a function of the key."""
    net, prompt = network_for(BackboneSpec(), dims), torch.randint(3, VOCAB, (2, 4))
    for decoding in _decodings(spec):
        first, second = (_last(spec, net, prompt, decoding) for _ in range(2))
        require(torch.equal(first, second), "two runs with one key differ")


def draws_a_row_as_in_a_smaller_batch(spec: Sampler, dims: Dims) -> None:
    """A row's text does not depend on the rows after it, nor on the padding that a longer one of them asks for."""
    net, prompt = network_for(BackboneSpec(), dims), torch.randint(3, VOCAB, (3, 7))
    prompt[0, :3] = SPECIALS.pad
    prompt[1, :2] = SPECIALS.pad
    for decoding in _decodings(spec):
        together, alone = _last(spec, net, prompt, decoding), _last(spec, net, prompt[:1, 3:], decoding)
        require(torch.equal(together[:1, 3:], alone), "the first row has another text when it is drawn alone")
        pair = _last(spec, net, prompt[:2, 2:], decoding)
        require(torch.equal(together[:2, 2:], pair), "two rows have other texts when a third is drawn with them")


def fills_what_is_masked_or_refuses(spec: Sampler, dims: Dims) -> None:
    """Masks within a prompt are filled and what was given stays, or the request is refused."""
    net, prompt = network_for(BackboneSpec(), dims), torch.randint(3, VOCAB, (2, 9))
    prompt[0, 2:5] = prompt[1, 4:8:2] = SPECIALS.mask
    given = prompt != SPECIALS.mask
    for decoding in _decodings(spec):
        try:
            frames = list(spec.frames(net, prompt, 0, 7, SPECIALS, decoding))
        except RequestError:
            continue
        for frame in frames:
            require(torch.equal(frame.tokens[given], prompt[given]), "a given token has changed")
            if frame.settled is not None:
                settled = frames[-1].tokens[frame.settled]
                require(torch.equal(frame.tokens[frame.settled], settled), "a token has changed that was settled")
        require(not (frames[-1].tokens == SPECIALS.mask).any(), "a mask is left in the text")


def _decodings(spec: Sampler) -> list[Decoding]:
    """Ways in which a sampler may be told to ask."""
    if spec.needs == "all":
        return [Decoding(spec.kinds, 3, "before", "causal"), Decoding(spec.kinds, 4, "own", "causal")]
    blocks = [Decoding(("block",), 3, "before"), Decoding(("block",), 4)] if "block" in spec.kinds else []
    return [*blocks, *(Decoding((kind,)) for kind in spec.kinds if kind != "block")]


def _last(spec: Sampler, net: Backbone, prompt: Tensor, decoding: Decoding) -> Tensor:
    return [frame.tokens for frame in spec.frames(net, prompt, 6, 7, SPECIALS, decoding)][-1]


SAMPLER = (
    extends_the_prompt_and_counts,
    draws_the_same_text_from_the_same_key,
    draws_a_row_as_in_a_smaller_batch,
    fills_what_is_masked_or_refuses,
)
