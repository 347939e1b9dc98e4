"""A user's plug-in file passes the contract suite under whatever name the file has."""

import pytest

from lit_small_lm.discovery import discover
from lit_small_lm.plugin import NormScheme, find
from lit_small_lm.spec import class_path
from lit_small_lm.testing import check

PLUGIN = '''
"""A user's file."""
from dataclasses import dataclass
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.residual import PrePath
from lit_small_lm.plugin import NormScheme

@dataclass(frozen=True, kw_only=True)
class NAME(NormScheme):
    """Pre-norm once more."""
    def build(self, site):
        return PrePath(RMSNorm().build(site.dim))
    def close(self, dim):
        return RMSNorm().build(dim)
'''


@pytest.mark.parametrize(
    ("file", "name"), [("mine.py", "UserPlain"), ("02_mine.py", "UserDigit"), ("my-own.scheme.py", "UserHyphen")]
)
def test_a_user_file_of_any_name(tmp_path, file, name):
    (tmp_path / file).write_text(PLUGIN.replace("NAME", name))
    discover([tmp_path / file])
    scheme = find(NormScheme, name)
    assert all(part.isidentifier() for part in class_path(scheme).split("."))  # configs name it by this path
    check(scheme())
