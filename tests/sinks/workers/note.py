"""How a worker tells the test what it received. Knows nothing of redisagg, as no worker must."""

from __future__ import annotations

import json
import os
from typing import Any

RECEIVED = "REDISAGG_TEST_RECEIVED"
"""The environment variable with the path of the file that `note` appends to."""


def note(**what: Any) -> None:
    """Appends a line to the file; lines of several processes don't mix."""
    line = json.dumps(what, default=repr) + "\n"
    file = os.open(os.environ[RECEIVED], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)
