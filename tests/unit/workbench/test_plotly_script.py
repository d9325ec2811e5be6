"""The pinned script of plotly.js, against the version of the Python package."""

from __future__ import annotations

import gzip
import hashlib
import re

from plotly.offline import get_plotlyjs

from workbench.plotly_script import FILE, SHA256


def test_script_is_the_pinned_file_in_the_version_of_the_python_package() -> None:
    script = gzip.decompress(FILE.read_bytes())
    assert hashlib.sha256(script).hexdigest() == SHA256
    head = script[:300].decode()
    whole = re.search(r"plotly\.js v(\S+)", get_plotlyjs()[:300])
    small = re.search(r"plotly\.js \(cartesian.*?\) v(\S+)", head)
    assert whole is not None
    assert small is not None
    assert small[1] == whole[1]
    assert b"MIT license" in script[:300]
