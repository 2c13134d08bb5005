# SPDX-License-Identifier: MIT
"""This machine as a profile: it loads back, and says nothing that was not read or measured."""

from __future__ import annotations

import json
import os

import jsonschema
import pytest
import yaml

from bitnet_edge import _engine, detect, profiles
from bitnet_edge.cli import main
from bitnet_edge.errors import ArgumentError
from bitnet_edge.profiles import load_profile
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "device_profiles/profile.schema.json").read_text("utf-8"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(detect, "STORAGE_BYTES", 8 << 20)
    monkeypatch.delenv(profiles.ENVIRONMENT, raising=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return detect.detect("here", tmp_path_factory.mktemp("storage"))


def test_it_loads_back(found, tmp_path):
    path = tmp_path / "here.yaml"
    path.write_text(found.to_yaml())
    assert load_profile(path) == found.profile
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(found.to_yaml()))
    assert found.to_json()["profile"] == load_profile(path).to_dict()


def test_values_are_those_of_this_machine(found):
    profile = found.profile
    assert list(profile.isa) == list(_engine.cpu_isas())
    assert profile.default_threads <= _engine.cpu_available()
    assert sum(cluster.count for cluster in profile.cores) <= (os.cpu_count() or 1)
    assert profile.page_kb * 1024 == os.sysconf("SC_PAGE_SIZE")
    assert profile.ram_mb == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert profile.memory_bandwidth_gbps >= profile.memory_bandwidth_one_core_gbps > 0.1
    assert all(0.1 <= cluster.ghz <= 8 for cluster in profile.cores)
    assert isinstance(profile.storage_read_mbps, float)
    assert profile.storage_read_mbps > 0


def test_every_value_has_its_source(found):
    for line in found.to_yaml().splitlines()[2:]:
        if not line.startswith(("name:", "description:", "  - ")):
            assert " # " in line, line
    for key in ("memory_bandwidth_gbps", "memory_bandwidth_one_core_gbps"):
        assert "measured here" in found.sources[key]


def test_the_clock_is_that_of_dependent_additions():
    best = [max(n / _engine.measure_clock(n) for _ in range(50)) for n in (320_000, 640_000)]
    assert best[0] == pytest.approx(best[1], rel=0.25)
    assert _engine.measure_clock(0) < 1_000_000


def test_a_storage_that_answers_from_memory_is_not_called_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(detect, "_bytes_from_storage", lambda: 0)
    speed, source = detect._storage(tmp_path)
    assert (speed, source.split(":")[0]) == (20.0, "estimate")
    assert "answers from memory" in source


def test_a_directory_that_cannot_be_written(tmp_path):
    speed, source = detect._storage(tmp_path / "absent")
    assert (speed, source.split(":")[0]) == (20.0, "estimate")


def test_systems_that_tell_less(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "posix_fadvise")
    monkeypatch.setattr(os, "sysconf_names", {})
    monkeypatch.setattr(detect, "_text", lambda path: "")
    monkeypatch.setattr(detect.platform, "processor", lambda: "")
    profile = detect.detect("plain").profile
    assert profile.cores[0].count == _engine.cpu_available()
    assert (profile.soc, profile.ram_mb) == (detect.platform.machine(), 1024)


ARM = "\n".join(f"processor\t: {i}\nCPU part\t: {0xD05 if i < 2 else 0xD0B:#x}\n" for i in range(4))


def test_clusters_of_a_phone(monkeypatch):
    files = {"/proc/cpuinfo": ARM, "/proc/device-tree/model": "Some Board Rev 1.2\0"}
    for cpu in range(4):
        folder = f"/sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/cpufreq/cpuinfo_max_freq"] = "1800000" if cpu < 2 else "2400000"
        files[f"{folder}/topology/thread_siblings_list"] = str(cpu)
    monkeypatch.setattr(detect, "_text", lambda path: files.get(str(path), "").strip("\0"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    clusters, source = detect._clusters()
    assert [(c.name, c.count, c.ghz) for c in clusters] == [
        ("Cortex-A76", 2, 2.4),
        ("Cortex-A55", 2, 1.8),
    ]
    assert "cpufreq" in source
    assert detect._soc() == ("Some Board Rev 1.2", "/proc/device-tree/model")
    files = {key: value for key, value in files.items() if "cpufreq" not in key}
    clusters, source = detect._clusters()
    assert sorted((c.name, c.count) for c in clusters) == [("Cortex-A55", 2), ("Cortex-A76", 2)]
    assert "measured here" in source


def test_two_threads_of_a_core_count_once(monkeypatch):
    files = {
        f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": "0-1" for cpu in (0, 1)
    }
    monkeypatch.setattr(detect, "_text", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert [cluster.count for cluster in detect._clusters()[0]] == [1]


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["devices", "--detect"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["name"] == "this-machine"
    path = tmp_path / "My Board_2.yaml"
    assert main(["devices", "--detect", "-o", str(path)]) == 0
    assert load_profile(path).name == "my-board-2"
    assert main(["devices", str(path)]) == 0
    assert "my-board-2" in capsys.readouterr().out
    assert main(["devices", "--detect", "-o", str(path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["devices", "--detect", "-o", str(path), "--force", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["profile"] == load_profile(path).to_dict()
    assert "measured here" in data["sources"]["memory_bandwidth_gbps"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["devices", "--detect", "ipad"], "expected --detect or a name"),
        (["devices", "-o", "x.yaml"], "need --detect"),
        (["devices", "--force"], "need --detect"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_bad_name():
    with pytest.raises(ArgumentError, match="got 'No Name'"):
        detect.detect("No Name")
