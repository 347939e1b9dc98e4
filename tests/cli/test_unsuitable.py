"""A family and a shape that do not go together: status 2, one line naming both values, nothing left behind."""

import pytest

FAMILY = """
class_path: BackboneSpec
init_args:
  more_layers:
    local: {mixer: {class_path: Attention, init_args: {window: 8}}}
  pattern: [local, local, local, local, local, layer]
"""
CASES = {
    "odd head": (["--model.shape.n_heads", "16"], ["share 1.0 of head_dim 1 rotates 1 channels; allowed: even"]),
    "heads": (["--model.shape.n_heads", "5"], ["dim 16 is not divisible by n_heads 5"]),
    "key/value heads": (["--model.shape.n_kv_heads", "3"], ["n_heads 2 is not a multiple of n_kv_heads 3"]),
    "partial rotary": (["--model.backbone.positions.share", "0.4"], ["positions.share 0.4 of head_dim 8 rotates 3"]),
    "odd head of a budget": (
        ["--model.shape", "BudgetShape", "--model.shape.params", "9000", "--model.shape.head_dim", "3"],
        ["positions.share 1.0 of head_dim 3 rotates 3 channels"],
    ),
    "budget below the smallest": (
        ["--model.shape", "BudgetShape", "--model.shape.params", "9000", "--model.shape.head_dim", "64"],
        ["shape.params: 9,000 (total); the smallest network, 1 deep and 64 wide, has 47,"],
    ),
    "learned positions": (
        ["--model.backbone.positions", "Learned", "--model.backbone.positions.length", "8"],
        ["data.seq_len: 16; model.backbone.positions has 8 positions"],
    ),
    "no such kind": (["--model.backbone.pattern", "[global]"], ["'global' is not a known kind of layer; known: layer"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_unsuitable(name, meets, monkeypatch):
    monkeypatch.setenv("LIT_SMALL_LM_CACHE", "cache")  # no text is read before
    argv, says = CASES[name]
    meets({"argv": argv, "says": says})


def test_a_family_deeper_than_the_network_is_a_warning(fit, write):
    write({"family.yaml": FAMILY})
    says = "backbone.pattern: layer 6 is the first of kind 'layer'; shape.n_layers: 1, so there are none of them"
    with pytest.warns(UserWarning, match=says):
        status, _ = fit("--model.backbone", "family.yaml", "--trainer.max_steps", "1")
    assert status == 0
