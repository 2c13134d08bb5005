# SPDX-License-Identifier: MIT
"""The command line as a user sees it: real processes, real files, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from importlib import import_module
from pathlib import Path

import pytest

from bitnet_edge.cli import COMMANDS, main
from bitnet_edge.cli.text import progress_bar, size, table
from tests.conftest import PROMPT, checkpoint

CLI = [sys.executable, "-m", "bitnet_edge.cli"]


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def ok(*arguments: object, **options) -> str:
    result = run(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_export_shows_size_budget_and_checksum(tmp_path):
    out = ok(
        "export", checkpoint("bf16"), "--device", "raspberry-pi-zero-2w", "-o", tmp_path / "m.bte"
    )
    assert "for raspberry-pi-zero-2w" in out
    assert re.search(r"[\d.]+ KB, [\d.]+ bits per weight", out)
    assert re.search(r"sha256 [0-9a-f]{64}", out)
    for name in ("arena", "kv_cache", "tokenizer", "engine", "interpreter", "total", "weights"):
        assert name in out
    digest = subprocess.run(
        ["sha256sum", tmp_path / "m.bte"], capture_output=True, text=True, check=True
    )
    assert digest.stdout.split()[0] in out


def test_export_json_and_flags(tmp_path):
    arguments = ["export", checkpoint("packed"), "-o", tmp_path / "m.bte", "--json"]
    data = json.loads(
        ok(*arguments, "--context", 100, "--kv-dtype", "f16", "--threads", 2, "--target", "bte")
    )
    assert data["plan"]["context"] == 100
    assert data["plan"]["kv_dtype"] == "f16"
    assert data["plan"]["threads"] == 2
    assert data["bytes"] == (tmp_path / "m.bte").stat().st_size
    again = run(*arguments)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run(*arguments, "--force").returncode == 0


def test_plan_writes_nothing(tmp_path):
    out = ok("plan", checkpoint("packed"), "--device", "apple-watch", cwd=tmp_path)
    assert "on apple-watch" in out
    assert "% of" in out
    assert list(tmp_path.iterdir()) == []
    data = json.loads(ok("plan", checkpoint("packed"), "--json"))
    assert data["needed_bytes"] == sum(data["private_bytes"].values())


def test_generate_streams_text_and_figures(bte):
    result = run("generate", bte, PROMPT, "--max-tokens", 20)
    assert result.returncode == 0
    assert result.stdout.startswith(PROMPT)
    assert re.search(
        r"\[\d+ prompt tokens in [\d.]+ ms, 20 new tokens at \d+ tokens/s", result.stderr
    )


def test_generate_json_from_stdin(bte):
    data = json.loads(
        ok("generate", bte, "-", "--max-tokens", 8, "--json", "--stop", "@", input=PROMPT)
    )
    assert data["prompt"] == PROMPT
    assert data["new_tokens"] == len(data["token_ids"]) == 8
    assert data["finish_reason"] == "max_tokens"


def test_generate_refuses_a_small_budget(bte):
    result = run("generate", bte, PROMPT, "--memory-budget", "1MB")
    assert result.returncode == 2
    assert "over the budget" in result.stderr


def test_inspect_folds_identical_layers(bte):
    out = ok("inspect", bte)
    assert "layer 0 .. 5, 6 identical layers" in out
    start = out.index("layer 0")
    layer = out[start : out.index("\n  final_norm")].splitlines()
    assert 9 <= len(layer) <= 14, "about ten lines a layer"
    for section in ("program", "tokenizer", "graph", "weights"):
        assert f"  {section}" in out
    assert "q_proj, k_proj, v_proj = ternary_linear" in out


def test_inspect_program_verify_and_json(bte):
    out = ok("inspect", bte, "--program", "--verify")
    assert "rms_norm_quantize width=128" in out
    assert "checksums match" in out
    data = json.loads(ok("inspect", bte, "--json"))
    assert data["model"]["vocab_size"] == 2048
    assert len(data["graph"]["nodes"]) > 60


def test_inspect_of_a_damaged_file(bte, tmp_path):
    damaged = bytearray(bte.read_bytes())
    damaged[-20000] ^= 1
    (tmp_path / "d.bte").write_bytes(damaged)
    result = run("inspect", tmp_path / "d.bte", "--verify")
    assert result.returncode == 2
    assert "is corrupt" in result.stderr


def test_inspect_shows_differing_layers_apart(tmp_path):
    from bitnet_edge.cli.inspect import describe_graph
    from tests.graphs import GraphBuilder

    b = GraphBuilder()
    x = b.input("x", 32)
    for i, bias in enumerate((True, True, False)):
        x = b.ternary(f"layers.{i}.linear", x, 32, bias=bias)
    lines = list(describe_graph(b.source(["x"], [x]).graph))
    assert lines[0] == "layer 0 .. 1, 2 identical layers"
    assert lines[2] == "layer 2"


def test_bench_reports_speed_and_memory(bte):
    arguments = ("--threads", 1, "--runs", 1, "--new-tokens", 4, "--prompt-tokens", 8)
    out = ok("bench", bte, *arguments)
    assert re.search(r"decode +\d+ tokens/s +4 tokens, [\d.]+ us each, Python", out)
    data = json.loads(ok("bench", bte, *arguments, "--json"))
    assert data["decode_us_per_token"] > 0
    assert data["process_private_bytes"] < 12 << 20
    assert run("bench", bte, "--runs", 0).returncode == 2


def test_devices():
    out = ok("devices")
    for name in (
        "generic-50mb",
        "raspberry-pi-zero-2w",
        "raspberry-pi-5",
        "pixel-8",
        "iphone-15-pro",
        "iphone-keyboard-extension",
        "apple-watch",
    ):
        assert name in out
    assert "private_mb" in ok("devices", "pixel-8")
    assert json.loads(ok("devices", "pixel-8", "--json"))["name"] == "pixel-8"
    assert len(json.loads(ok("devices", "--json"))) >= 16
    unknown = run("devices", "pixle-8")
    assert unknown.returncode == 2
    assert "pixel-8" in unknown.stderr


def test_info():
    out = ok("info", env=os.environ | {"BITNET_EDGE_CPU": "scalar"})
    assert "BITNET_EDGE_CPU=scalar" in out
    data = json.loads(ok("info", "--json"))
    assert set(data["kernels"].values()) <= set(data["instruction_sets"])


def test_an_unknown_cpu_is_an_error():
    result = run("info", env=os.environ | {"BITNET_EDGE_CPU": "sse9"})
    assert result.returncode == 2
    assert "BITNET_EDGE_CPU=sse9" in result.stderr


def test_demo_goes_the_whole_way(tmp_path):
    result = run("demo", "-o", tmp_path / "kept.bte", "--max-tokens", 12)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("ROMEO:\n")
    assert "private memory" in result.stderr
    assert "tokens/s" in result.stderr
    assert (tmp_path / "kept.bte").exists()
    assert run("demo", "-o", tmp_path / "kept.bte").returncode == 2


def test_demo_json():
    data = json.loads(ok("demo", "--max-tokens", 3, "--json", "--threads", 1))
    assert data["new_tokens"] == 3
    assert data["export"]["plan"]["device"] == "raspberry-pi-zero-2w"


def test_demo_by_default_leaves_nothing_behind(tmp_path):
    env = os.environ | {"TMPDIR": str(tmp_path)}
    assert run("demo", "--max-tokens", 2, env=env).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["export"], ["frobnicate"], [], ["export", "/nowhere"], ["generate", "/no", "x"]]
)
def test_bad_usage_and_bad_input_exit_2(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["validate", "m.bte", "--golden", ""], "golden"),
        (["validate", "m.bte", "--baseline="], "baseline"),
        (["validate", "m.bte", "--save-golden="], "save-golden"),
        (["devices", ""], "name"),
        (["plan", ""], "checkpoint"),
    ],
)
def test_an_empty_value_is_no_wish(arguments, name, capsys):
    assert main(arguments) == 2
    expected = f"bitnet-edge: [{arguments[0]}] {name}: expected a value, got an empty one\n"
    assert capsys.readouterr().err == expected


def test_version_and_help():
    assert ok("--version").startswith("bitnet-edge ")
    out = ok("--help")
    for command in COMMANDS:
        assert command in out
        assert ok(command, "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_has_its_help(command):
    parser = argparse.ArgumentParser()
    import_module(f"bitnet_edge.cli.{COMMANDS[command][0]}").configure(parser)
    assert [action.dest for action in parser._actions if not action.help] == []


def test_a_reader_that_stops_is_no_error(bte):
    command = f"{' '.join(CLI)} inspect {bte} --json | head -c 10; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


def test_generating_imports_no_host_module(bte):
    script = (
        "import sys; from bitnet_edge.cli import main\n"
        f"main(['generate', {str(bte)!r}, 'A', '--max-tokens', '2'])\n"
        "assert not {'numpy', 'yaml', 'bitnet_edge.graph'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def read_terminal(terminal: int, until: float) -> bytes:
    data = b""
    while time.monotonic() < until:
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                data += os.read(terminal, 65536)
            except OSError:  # the other side has closed
                break
    return data


def test_ctrl_c_stops_within_a_token_and_leaves_the_terminal_sane(bte):
    """In a real terminal: text, then Ctrl-C, then a newline, the figures and exit code 130."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child is the command in its own terminal
        os.environ["BITNET_EDGE_CPU"] = "scalar"  # or the context is full before a key is pressed
        options = ["--max-tokens", "100000", "--temperature", "1"]
        os.execv(sys.executable, [*CLI, "generate", str(bte), PROMPT, *options])
    settings = termios.tcgetattr(terminal)
    data = b""
    while len(data) < 40:
        data += os.read(terminal, 65536)
    os.write(terminal, b"\x03")
    pressed = time.monotonic()
    data += read_terminal(terminal, pressed + 1.0)
    _, status = os.waitpid(pid, 0)
    assert termios.tcgetattr(terminal) == settings
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"interrupted]\r\n" in data
    assert b"Traceback" not in data


def test_sigint_during_export_leaves_nothing(tmp_path):
    script = (
        "import sys; from bitnet_edge.cli import main; import bitnet_edge.writer as w\n"
        "real = w._stored_chunks\n"
        "def slow(*a):\n"
        "    print('started', flush=True); import time; time.sleep(30); yield b''\n"
        "w._stored_chunks = slow\n"
        f"sys.exit(main(['export', {str(checkpoint('packed'))!r}, '-o', 'm.bte']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_main_in_process(bte, capsys):
    assert main(["inspect", str(bte)]) == 0
    assert "sections" in capsys.readouterr().out
    assert main(["inspect", str(Path("/nowhere.bte"))]) == 2
    assert "No such file" in capsys.readouterr().err


# -- text helpers ---------------------------------------------------------------------------


def test_sizes():
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KB",
        "5.0 MB",
        "3.00 GB",
    ]


def test_tables_align():
    assert table([("a", "1"), ("bbb", "22")], right=(1,)) == "  a     1\n  bbb  22"


def test_progress_draws_only_on_a_terminal(monkeypatch, capsys):
    assert progress_bar("x") is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    draw = progress_bar("x")
    assert draw is not None
    draw(1, 2)
    draw(2, 2)
    err = capsys.readouterr().err
    assert f"[{'#' * 15}{'.' * 15}]" in err
    assert err.endswith("\n")
