"""Bodies that no path may accept."""

import json

MALICIOUS_BODIES = [
    b"not json",
    b'{"prompt": "\xff\xfe"}',
    b'{"temperature": NaN}',
    b'{"n": 1e400}',
    b'{"seed": ' + b"1" * 4999 + b"}",
    b"[" * 200_000 + b"]" * 200_000,
    b'{"logit_bias":' * 1000 + b"1" + b"}" * 1000,
    b'{"messages": 7, "n": "many"}',
    b'{"prompt": "a", "stop": [' + b'"a",' * 5000 + b'"a"]}',
    json.dumps({"prompt": ["a"] * 5000}).encode(),
]
