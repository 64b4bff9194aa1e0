"""Records for a test what a worker received; without redisagg, which no worker needs."""

from __future__ import annotations

import json
import os
from typing import Any

RECEIVED = "REDISAGG_TEST_RECEIVED"
"""The environment variable with the path of the file that `note` appends to."""


def note(**what: Any) -> None:
    """Appends a line to the file in one write, so that lines of several processes do not mix."""
    line = json.dumps(what, default=repr) + "\n"
    file = os.open(os.environ[RECEIVED], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)
