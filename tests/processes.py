# SPDX-License-Identifier: MIT
"""Fresh interpreters to measure."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def measure(script: str, *arguments: object) -> Any:
    """Run a script in a fresh interpreter; return the JSON it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
