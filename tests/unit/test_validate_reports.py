# SPDX-License-Identifier: MIT
"""The reports of a validation: for machines, for GitHub, for people; and unusable input."""

from __future__ import annotations

import errno
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bitnet_edge.bench import measure
from bitnet_edge.cli import main
from bitnet_edge.validate import numerics, speed
from bitnet_edge.validate.report import FAIL, PASS, SKIP, Check, Report, plain
from bitnet_edge.validate.report_github import github
from bitnet_edge.validate.report_html import page
from bitnet_edge.validate.report_junit import junit

FAST = ("--skip", "speed", "--skip", "memory", "--skip", "numerics")
MACHINE = {
    "bitnet_edge": "0",
    "python": "3",
    "system": "Linux",
    "machine": "x",
    "instruction_sets": ["scalar"],
}


def report(*checks: tuple[str, str, str], **keys: object) -> Report:
    made = [Check(name, status, line, 0.5) for status, name, line in checks]
    return Report("m<&>.bte", "d", MACHINE, "m<&>", made, **keys)


MIXED = report(
    (PASS, "a", "fine"), (FAIL, "b", "1 < 2 & 100 %, too: much"), (SKIP, "c", "left out")
)


def test_a_report_adds_up():
    assert not MIXED.passed
    assert MIXED.summary == "1 passed, 1 failed, 1 skipped in 1.5 s"
    data = json.loads(json.dumps(MIXED.to_json()))
    assert data["passed"] is False
    assert [check["status"] for check in data["checks"]] == [PASS, FAIL, SKIP]
    assert report((SKIP, "c", "")).passed


def test_junit():
    root = ElementTree.fromstring(junit(MIXED))
    suite = root.find("testsuite")
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "3", "failures": "1", "errors": "0", "skipped": "1", "time": "1.500"
    }  # fmt: skip
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert cases["b"].find("failure").get("message") == "1 < 2 & 100 %, too: much"
    assert cases["b"].get("classname") == "m<&> on d"
    assert cases["c"].find("skipped") is not None
    assert cases["a"].find("system-out").text == "fine"


def test_github_annotations_are_escaped():
    MIXED.file = "a,b:c.bte"
    assert list(github(MIXED)) == [
        "::error file=a%2Cb%3Ac.bte,title=bitnet-edge validate%3A b::1 < 2 & 100 %25, too: much"
    ]


class Page(HTMLParser):
    """Collects tags; complains about what is never closed, and about what is fetched."""

    VOID = frozenset({"meta", "br", "rect", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not {"src", "href", "onload"} & {key for key, _ in attrs}
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained():
    text = page(MIXED)
    assert "http" not in text
    assert "m&lt;&amp;&gt;" in text
    assert "<svg" not in text, "nothing was measured"
    Page(text)


def test_the_page_draws_memory_and_latency(bte, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure.read_buffer, "__defaults__", (1 << 20,))
    monkeypatch.setattr(speed, "RUNS", 1)
    path = tmp_path / "r.html"
    command = ["validate", str(bte), "--device", "raspberry-pi-zero-2w", "--host"]
    assert main([*command, "--skip", "numerics", "--html", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    text = path.read_text()
    found = Page(text)
    assert found.tags.count("svg") == 3 - (not data["memory"]["measured"]["counts_page_cache"])
    for layer in range(6):
        assert f">layers.{layer}</text>" in text
    for name in ("arena", "kv_cache", "interpreter", "context prefilled", "limit 50.0 MB"):
        assert name in text
    assert len(data["speed"]["layers"]) == 9, "embedding, six layers, norm, head"
    widths = [float(w) for w in re.findall(r'<rect x=".*?" y=".*?" width="([\d.]+)"', text)]
    assert widths
    assert max(widths) < 960


def test_a_bar_beyond_the_limit_is_marked():
    classes = {"classes": {"arena": 30 << 20}, "allowed": 20 << 20}
    assert '<text class="over"' in page(report(memory=classes))
    classes["allowed"] = 40 << 20
    assert '<text class="over"' not in page(report(memory=classes))


def test_small_ops_share_a_colour():
    layers = [{"layer": "layers.0", "us": {f"op{i}": 2000.0 - i for i in range(12)}}]
    speed_data = {"layers": layers, "decode_us_per_token": 1.0, "threads": 2, "prefill": []}
    text = page(report(speed=speed_data))
    assert "other 10.0 ms" in text
    assert "op7" not in text


def test_text_that_no_report_could_hold():
    assert plain("a\nb\x1bc\udcffd") == "a b\ufffdc?d"


def test_a_name_that_is_no_text(bte, tmp_path, capfd):
    path = os.fsencode(tmp_path) + b"/\xff\n.bte"
    Path(os.fsdecode(path)).write_bytes(bte.read_bytes())
    out = tmp_path / "r.xml"
    assert main(["validate", os.fsdecode(path), *FAST, "--github", f"--junit={out}"]) == 0
    ElementTree.parse(out)
    assert "?" in capfd.readouterr().out


# -- outputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--junit", "--html", "--save-golden"])
def test_a_report_that_cannot_be_written_is_unusable_input(bte, tmp_path, capsys, flag):
    assert main(["validate", str(bte), *FAST, f"{flag}={tmp_path / 'no' / 'r'}"]) == 2
    assert re.search("cannot write in .*: No such file or directory", capsys.readouterr().err)
    assert main(["validate", str(bte), *FAST, f"{flag}={tmp_path}"]) == 2
    assert main(["validate", str(bte), *FAST, f"{flag}={tmp_path / 'r'}"]) == 0
    assert (tmp_path / "r").stat().st_size > 0
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_devices_and_links_are_written_into(bte, tmp_path):
    """As /dev/stdout is a link, a rename would take the machine's away."""
    (tmp_path / "target").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    command = ["validate", str(bte), *FAST]
    assert main([*command, f"--junit={tmp_path / 'link'}", f"--html={tmp_path / 'pipe'}"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert "<testsuites>" in (tmp_path / "target").read_text()
    assert os.read(reader, 15) == b"<!doctype html>"
    os.close(reader)
    assert main([*command, "--junit=/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_a_full_device_is_an_error(bte, capsys):
    assert main(["validate", str(bte), *FAST, "--junit=/dev/full"]) == 2
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().err


def test_nothing_that_failed_becomes_a_standard(bte, tmp_path, capsys):
    path = tmp_path / "g.json"
    other = "raspberry-pi-5" if "neon" not in numerics._engine.cpu_isas() else "laptop-avx2"
    assert main(["validate", str(bte), *FAST, "--device", other, "--save-golden", str(path)]) == 1
    assert f"{path} is not written: a check failed" in capsys.readouterr().err
    assert not path.exists()


def test_github_is_found_by_its_variable(bte, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    other = "raspberry-pi-5" if "neon" not in numerics._engine.cpu_isas() else "laptop-avx2"
    assert main(["validate", str(bte), *FAST, "--device", other]) == 1
    assert f"::error file={bte},title=bitnet-edge validate%3A isa::" in capsys.readouterr().out
    assert main(["validate", str(bte), *FAST, "--device", other, "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is False
    assert "::error file=" in err


# -- unusable input -------------------------------------------------------------------------


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "input"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def unusable(arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(5000)])
def test_not_a_bte_file(tmp_path, content, capsys):
    unusable([write(tmp_path, content), *FAST], "not a .bte file", capsys)


def test_no_file(tmp_path, capsys):
    unusable([tmp_path / "missing.bte"], "No such file", capsys)
    unusable([tmp_path], "Is a directory", capsys)


def test_an_unknown_device(bte, tmp_path, capsys):
    unusable([bte, "--device", "pixle-8"], "did you mean 'pixel-8'", capsys)
    unusable([bte, "--device", tmp_path / "no.yaml"], "cannot read", capsys)
    profile = write(tmp_path, "name: 1").rename(tmp_path / "broken.yaml")
    unusable([bte, "--device", profile], "broken.yaml", capsys)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "\xff", "[" * 100000, '{"format": 2}',
                '{"format": 1, "model": "packed", "ratios": {}, "bytes": {}}',
                '{"format": 1, "model": "packed", "ratios": {"decode": "fast"}}',
                '{"format": 1, "model": "packed", "ratios": {"decode": NaN}}',
                '{"format": 1, "model": "packed", "ratios": {"decode": -1}}',
                '{"format": 1, "model": "packed", "ratios": {}, "bytes": {"private": 1e400}}']
)  # fmt: skip
def test_a_baseline_that_is_none(bte, tmp_path, content, capsys):
    unusable([bte, "--baseline", write(tmp_path, content)], "expected a file of bench", capsys)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "\xff", "[" * 100000, '{"format": 1, "model": "packed"}',
                '{"format": 1, "model": "packed", "probes": {}, "texts": []}',
                '{"format": 1, "model": "packed", "probes": {"a": 1}, "texts": []}',
                '{"format": 1, "model": "packed", "probes": [], "texts": []}',
                '{"format": 1, "model": "packed", "probes": {}, "texts": [{"ids": "abc"}]}',
                '{"format": 1, "model": "packed", "probes": {}, "texts": [{"ids": [true]}]}']
)  # fmt: skip
def test_golden_outputs_that_are_none(bte, tmp_path, content, capsys):
    unusable([bte, "--golden", write(tmp_path, content)], "--save-golden, got something", capsys)


def test_what_belongs_to_another_model(bte, tmp_path, capsys):
    text = '{"format": 1, "model": "other", "ratios": {"decode, 1 threads": 1}}'
    unusable([bte, "--baseline", write(tmp_path, text)], "a baseline of 'packed', got 'other'",
             capsys)  # fmt: skip
    text = '{"format": 1, "model": "other", "probes": {"spread": "0"}, "texts": []}'
    unusable([bte, "--golden", write(tmp_path, text)], "outputs of 'packed', got 'other'", capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--golden", "FILE", "--save-golden", "g"], "got both"),
        (["--prompt", "x"], "needs --save-golden"),
        (["--max-latency", "+5%"], "need --baseline"),
        (["--max-memory", "+5%"], "need --baseline"),
        (["--baseline", "FILE", "--max-memory", "5"], "allowance"),
        (
            ["--baseline", "FILE", "--max-memory", "+5%", "--skip", "memory"],
            "contradicts --skip mem",
        ),
        (["--save-baseline", "b", "--skip", "speed"], "contradicts --skip speed"),
        (["--baseline", "FILE", "--skip", "speed", "--skip", "memory"], "both skipped"),
        (["--threads", "0"], "expected threads 1 .. 64"),
        (["--baseline", "/nowhere/b.json"], "No such file"),
        (["--golden", "/nowhere/g.json"], "No such file"),
    ],
)
def test_impossible_flags(bte, tmp_path, flags, message, capsys):
    content = '{"format": 1, "model": "packed", "ratios": {"decode, 1 threads": 1}}'
    path = write(tmp_path, content)
    unusable([bte, *(path if flag == "FILE" else flag for flag in flags)], message, capsys)


@pytest.mark.parametrize("flags", [["--skip", "everything"], ["--threads", "two"], ["--quick"]])
def test_flags_that_argparse_refuses(bte, flags, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["validate", str(bte), *flags])
    assert caught.value.code == 2
    assert "usage: bitnet-edge" in capsys.readouterr().err
