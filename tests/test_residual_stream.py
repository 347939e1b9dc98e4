"""The stream is found in whatever form a norm scheme carries it."""

import pytest
import torch

from lit_small_lm.residual_stream import stream, streams


@pytest.mark.parametrize("shape", ["before", "between", "named"])
def test_streams_in_any_form_are_found(shape):
    x = torch.randn(2, 5, 4)
    parts = [x, 2 * x, 3 * x]
    carry = {
        "before": torch.stack(parts),
        "between": (torch.stack(parts, 2), torch.ones(1)),
        "named": {"a": (x, x), "b": [2 * x, 3 * x], "gate": torch.ones(2, 5, 1)},
    }[shape]
    torch.testing.assert_close(torch.stack(streams(carry, (2, 5, 4))), torch.stack(parts))
    torch.testing.assert_close(stream(carry, (2, 5, 4)), sum(parts))


def test_where_nothing_has_its_shape_there_is_none():
    assert stream({"gate": torch.ones(2, 5, 1), "flat": torch.ones(2, 20)}, (2, 5, 4)) is None
