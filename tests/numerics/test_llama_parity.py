"""The Llama-shaped backbone against `transformers.LlamaForCausalLM` on the same random weights.

The reference computes norms, rotary tables and rotary frequencies in float32 even in a float64 model; with those casts
patched to float64 both agree to 1e-10. Unpatched, in float32, they agree to 1e-6, relative to the norm of each tensor:
float32 carries 1.2e-7, and the sums of two layers lose a few of these (measured: 5e-7). Weights are scaled so that
logits are of order one; with larger weights the softmax and the norms amplify rounding further, by chance of the seed.
"""

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.llama import modeling_llama

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.nn.residual import LayerNormScaling, PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.shapes import FixedShape

VOCAB = 61
SHAPES = {
    "MHA": FixedShape(dim=24, n_layers=2, n_heads=4, hidden=40),
    "GQA": FixedShape(dim=24, n_layers=2, n_heads=4, n_kv_heads=2, hidden=40),
    "MQA": FixedShape(dim=24, n_layers=2, n_heads=4, n_kv_heads=1, hidden=40),
    "head_dim": FixedShape(dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=10, hidden=16),
    "one layer": FixedShape(dim=16, n_layers=1, n_heads=2, hidden=32),
}
FAMILY = BackboneSpec(norm=PreNorm(norm=RMSNorm(eps=1e-5)), positions=Rotary(base=500.0))


def reference(shape: FixedShape, head: str = "tied", scale: float = 0.2) -> transformers.LlamaForCausalLM:
    """A Llama with random weights of this deviation, the norms' gains around one included."""
    dims = shape.resolve()
    config = transformers.LlamaConfig(
        hidden_size=dims.dim,
        num_hidden_layers=dims.n_layers,
        num_attention_heads=dims.n_heads,
        num_key_value_heads=dims.n_kv_heads,
        head_dim=dims.head_dim,
        intermediate_size=dims.hidden,
        vocab_size=VOCAB,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=head == "tied",
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(mean, scale)
    return model


def in_groups(parts: list[Tensor], groups: int) -> Tensor:
    """The rows of several projections joined: for each group its share of every part."""
    return torch.cat([piece for group in zip(*(part.chunk(groups) for part in parts), strict=True) for piece in group])


def named_as_ours(theirs: dict[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    """Llama's tensors (weights or gradients) under our names, with fused projections joined."""
    ours = {}
    for name, tensor in theirs.items():
        layer = name.rsplit(".", 2)[0].replace("model.", "")
        match name.split(".")[-2]:
            case "embed_tokens":
                ours["embed.weight"] = tensor
            case "lm_head":
                ours["head.weight"] = tensor
            case "norm":
                ours["close.weight"] = tensor
            case "input_layernorm":
                ours[f"{layer}.mixer_path.norm.weight"] = tensor
            case "post_attention_layernorm":
                ours[f"{layer}.ffn_path.norm.weight"] = tensor
            case "o_proj":
                ours[f"{layer.replace('self_attn', 'mixer')}.o_proj.weight"] = tensor
            case "down_proj":
                ours[f"{layer.replace('mlp', 'ffn')}.down_proj.weight"] = tensor
            case "q_proj":
                parts = [theirs[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                ours[f"{layer.replace('self_attn', 'mixer')}.qkv_proj.weight"] = in_groups(parts, dims.n_kv_heads)
            case "gate_proj":
                parts = [tensor, theirs[name.replace("gate_proj", "up_proj")]]
                ours[f"{layer.replace('mlp', 'ffn')}.gate_up_proj.weight"] = in_groups(
                    parts, dims.groups_of(dims.hidden)
                )
    return ours


def twin(model: transformers.LlamaForCausalLM, shape: FixedShape, head: str = "tied") -> Backbone:
    """Our backbone with the reference's weights."""
    spec = BackboneSpec(norm=FAMILY.norm, positions=FAMILY.positions, head=head)
    net = Backbone(spec, shape.resolve(), VOCAB).to(model.dtype).eval()
    state = named_as_ours(model.state_dict(), net.dims)
    if head == "tied":
        del state["head.weight"]
    net.load_state_dict(state)
    return net


def compare(model, net, tolerance: float) -> None:
    """Logits, and the gradients of a random projection of them, agree relative to the norm of each tensor."""
    tokens = torch.randint(VOCAB, (3, 17), generator=torch.Generator().manual_seed(1))
    probe = torch.randn(3, 17, VOCAB, generator=torch.Generator().manual_seed(2)).to(model.dtype)
    theirs, ours = model(tokens).logits, net(tokens, Context(Visibility.rows(tokens)))
    assert theirs.abs().max() > 0.5  # the numbers compared are of the size of a real model's
    assert relative(ours, theirs) < tolerance
    (theirs * probe).sum().backward()
    (ours * probe).sum().backward()
    wanted = named_as_ours({name: p.grad for name, p in model.named_parameters()}, net.dims)
    found = {name: p.grad for name, p in net.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert relative(gradient, wanted[name]) < tolerance, name


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture
def float64_reference(monkeypatch):
    """The reference without its casts to float32 (attention goes through SDPA, which keeps float64)."""

    def norm(self, h):
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        steps = torch.arange(0, self.config.head_dim, 2, dtype=torch.float64) / self.config.head_dim
        angles = position_ids[..., None].double() * self.config.rope_parameters["rope_theta"] ** -steps
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float64_agrees_to_1e_10(shape, head, float64_reference):
    model = reference(shape, head).double()
    compare(model, twin(model, shape, head), 1e-10)


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_agrees_to_1e_6(shape, head):
    model = reference(shape, head, scale=0.05)
    compare(model, twin(model, shape, head), 1e-6)


def test_without_the_patch_float64_does_not_agree():
    """Shows that the patch above is what the tight tolerance rests on, and that the comparison can fail."""
    model = reference(SHAPES["GQA"]).double()
    with pytest.raises(AssertionError):
        compare(model, twin(model, SHAPES["GQA"]), 1e-10)


@pytest.mark.parametrize(
    "other",
    [
        BackboneSpec(norm=FAMILY.norm, positions=Rotary(base=501.0)),
        BackboneSpec(norm=PreNorm(norm=RMSNorm(eps=2e-5)), positions=FAMILY.positions),
        BackboneSpec(norm=LayerNormScaling(norm=RMSNorm(eps=1e-5)), positions=FAMILY.positions),
        BackboneSpec(norm=FAMILY.norm, positions=FAMILY.positions, layer=LayerSpec(mixer=Attention(window=16))),
    ],
    ids=["rotary base", "eps", "scheme", "window"],
)
def test_another_family_does_not_agree(other, float64_reference):
    model = reference(SHAPES["GQA"]).double()
    net = Backbone(other, SHAPES["GQA"].resolve(), VOCAB).double().eval()
    net.load_state_dict(twin(model, SHAPES["GQA"]).state_dict())
    with pytest.raises(AssertionError):
        compare(model, net, 1e-10)
