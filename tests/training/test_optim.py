"""Parameter groups by rule."""

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.completep import CompletePInit
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.muon import Muon
from lit_small_lm.training.optim import AdamW


def test_norms_biases_and_embeddings_do_not_decay():
    layer = LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias"), canon_at="A")
    spec = BackboneSpec(norm=PreNorm(norm=LayerNorm()), layer=layer, positions=Learned(length=8), head="untied")
    net = Backbone(spec, FixedShape(dim=8, n_layers=1, n_heads=2).resolve(), 16)
    optimizer = AdamW(lr=0.5, weight_decay=0.3).build(list(net.named_roles()), fused=True)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        exempt = "norm" in name or "close" in name or name.endswith("bias") or name.startswith("embed")
        assert decay.pop(id(parameter)) == (0.0 if exempt else 0.3), name
    assert not decay
    assert all(group["lr"] == 0.5 and group["lr_scale"] == 1.0 for group in optimizer.param_groups)


def test_an_init_may_scale_rate_decay_and_eps_of_a_role():
    init = CompletePInit(base_dim=8, base_layers=1)
    net = Backbone(BackboneSpec(init=init), FixedShape(dim=32, n_layers=1, n_heads=2).resolve(), 16)
    for optim in (AdamW(lr=0.5, weight_decay=0.25, eps=0.1), Muon(lr=0.5, weight_decay=0.25, eps=0.1)):
        optimizer = optim.build(list(net.named_roles()), fused=False)
        found = {(group["lr"], group["weight_decay"], group["lr_scale"]) for group in optimizer.param_groups}
        assert found == {(0.5, 0.0, 1.0), (0.125, 1.0, 0.25)}  # embedding and norms; hidden weights, four times as wide
        adams = {group["eps"] for group in optimizer.param_groups if "betas" in group}
        assert adams == {0.025}  # all of them: gradients of the embedding shrink with the width, too
