"""The Step Law gives its published values."""

import pytest

from lit_small_lm.planning.suggestions import step_law
from lit_small_lm.plugin import Size


@pytest.mark.parametrize(
    ("n", "tokens", "lr", "batch"),
    [(70e6, 1e9, "2.64e-03", 79_878), (124e6, 2.5e9, "2.33e-03", 134_788), (7e9, 1.4e12, "9.17e-04", 4_998_815)],
)
def test_published_values(n, tokens, lr, batch):
    found = step_law(Size(int(2 * n), int(n)), tokens, "exact")
    assert (f"{found.lr:.2e}", round(found.batch_tokens)) == (lr, batch)
    assert "2503.04715" in str(found.statements)


def test_a_bound_is_doubted():
    exact, upper = (step_law(Size(2, 1), 1e9, bound).statements for bound in ("exact", "upper"))
    assert "masked diffusion" in str(upper) and "masked diffusion" not in str(exact)
