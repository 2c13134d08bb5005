# SPDX-License-Identifier: MIT
"""Every example runs as a person would run it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

EXAMPLES = {
    "export_and_run.py": ([], "JULIET:|private memory"),
    "score_text.py": (["BTE", "First Citizen:\nWe are accounted poor citizens."], "perplexity"),
}


def test_every_example_is_known():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name, bte, tmp_path):
    arguments, expected = EXAMPLES[name]
    command = [sys.executable, ROOT / "examples" / name]
    command += [str(bte) if argument == "BTE" else argument for argument in arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert any(word in result.stdout for word in expected.split("|"))
