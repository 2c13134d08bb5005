# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from bitnet_edge import profiles
from bitnet_edge._schema import Node, check
from bitnet_edge.errors import MissingDependency, ProfileError
from bitnet_edge.profiles import CoreCluster, OperatingSystem, list_profiles, load_profile
from tests.conftest import ROOT

FOLDER = ROOT / "device_profiles"
FILES = sorted(FOLDER.glob("*.yaml"))
SCHEMA = json.loads((FOLDER / "profile.schema.json").read_text("utf-8"))
JUDGE = jsonschema.Draft202012Validator(SCHEMA)
REQUIRED = {
    *("generic-50mb", "raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5"),
    *("pixel-6", "pixel-8", "galaxy-a-class", "android-go-2gb"),
    *("iphone-12", "iphone-15-pro", "iphone-16", "ipad", "apple-watch"),
    *("iphone-keyboard-extension", "iphone-notification-extension"),
    *("jetson-orin-nano", "laptop-avx2", "server-avx512"),
}
# One key a line, so that tests can count lines.
BOARD = """\
name: board
description: A board
soc: SoC
isa: [scalar, neon]
cores:
  - {name: Core, count: 4, ghz: 1.5}
memory_bandwidth_gbps: 4
ram_mb: 1024
private_mb: 40.5
storage_read_mbps: 20
os: {name: linux, minimum: '5.10'}
page_kb: 4
default_context: 512
default_threads: 4
"""


@pytest.fixture(autouse=True)
def no_user_directories(monkeypatch):
    monkeypatch.delenv(profiles.ENVIRONMENT, raising=False)


def write(folder: Path, text: str | bytes, name: str = "board") -> Path:
    path = folder / f"{name}.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def error_of(path: Path | str) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    return str(caught.value)


def plain(node: Node) -> object:
    if isinstance(node.value, dict):
        return {key: plain(inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [plain(inner) for inner in node.value]
    return node.value


def located(value: object) -> Node:
    """The inverse of `plain`, at no place in particular."""
    if isinstance(value, dict):
        value = {key: located(inner) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [located(inner) for inner in value]
    return Node(value, "memory")


# The packaged profiles


def test_every_packaged_profile_is_valid():
    found = list_profiles()
    names = [profile.name for profile in found]
    assert names == sorted(path.stem for path in FILES)
    assert set(names) >= REQUIRED
    for profile in found:
        assert 0 < profile.private_bytes <= 50 * 1024 * 1024
        assert profile.isa[0] == "scalar"
        assert profile == load_profile(profile.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_also_valid_for_other_readers(path):
    text = path.read_text("utf-8")
    standard = yaml.safe_load(text)
    JUDGE.validate(standard)
    assert plain(profiles._read(text.encode(), str(path))) == standard
    lines = text.splitlines()
    assert lines[0] == "# yaml-language-server: $schema=profile.schema.json"
    assert lines[1] == "# SPDX-License-Identifier: MIT"
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_its_source_beside_it(path):
    text = path.read_text("utf-8")
    lines = text.splitlines()
    numbers = 0

    def visit(node: Node) -> None:
        nonlocal numbers
        if isinstance(node.value, dict):
            for key, inner in node.value.items():
                if key == "minimum" or isinstance(inner.value, (int, float)):
                    numbers += 1
                    assert re.search(r" # .{5}", lines[inner.line - 1]), lines[inner.line - 1]
                visit(inner)
        elif isinstance(node.value, list):
            for inner in node.value:
                visit(inner)

    visit(profiles._read(text.encode(), str(path)))
    assert numbers or path.stem == "ipad"
    for tag in set(re.findall(r"\[([a-z0-9-]+)\]", text)) - {"scalar"}:
        assert re.search(rf"^#   \[{tag}\] \S", text, re.MULTILINE), f"no source [{tag}]"


def test_the_bandwidths_of_the_design_are_kept():
    expected = {"raspberry-pi-4": 4, "raspberry-pi-5": 12, "pixel-8": 30, "iphone-15-pro": 40}
    for name, bandwidth in expected.items():
        assert load_profile(name).memory_bandwidth_gbps == bandwidth


def test_families_inherit():
    parent, child = load_profile("iphone-15-pro"), load_profile("iphone-keyboard-extension")
    assert (child.private_mb, parent.private_mb) == (48, 50)
    assert child.cores == parent.cores
    assert load_profile("iphone-notification-extension").private_mb < 24
    assert load_profile("ipad").os == OperatingSystem("ipados", "18.0")


def test_the_instruction_sets_are_the_engines():
    table = (ROOT / "cython_kernels/include/isa_table.def").read_text()
    engine = re.findall(r"^BE_ISA\((\w+),", table, re.MULTILINE)
    assert SCHEMA["properties"]["isa"]["items"]["enum"] == engine
    assert {*profiles.ISA_NEEDS, "scalar"} == set(engine)


def test_a_source_tree_that_is_not_installed_has_them_too(monkeypatch):
    def missing(package: str) -> Path:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(profiles.resources, "files", missing)
    assert profiles._packaged() == FOLDER


# A profile


def test_fields_bytes_and_json(tmp_path):
    profile = load_profile(write(tmp_path, BOARD))
    assert profile.cores == (CoreCluster("Core", 4, 1.5),)
    assert profile.isa == ("scalar", "neon")
    assert profile.private_bytes == int(40.5 * 1024 * 1024)
    assert profile.resident_mb is None
    assert profile.os == OperatingSystem("linux", "5.10")
    data = profile.to_dict()
    assert data == yaml.safe_load(BOARD)
    assert json.loads(json.dumps(data)) == data
    assert isinstance(data["memory_bandwidth_gbps"], float)
    with pytest.raises(AttributeError):
        profile.ram_mb = 1  # type: ignore[misc]


def test_whole_floats_are_integers(tmp_path):
    profile = load_profile(write(tmp_path, BOARD.replace("ram_mb: 1024", "ram_mb: 1024.0")))
    assert isinstance(profile.ram_mb, int)


def test_optional_keys(tmp_path):
    text = BOARD.replace(", minimum: '5.10'", "") + "resident_mb: 512\nota_limit_mb: 75\n"
    profile = load_profile(write(tmp_path, text))
    assert (profile.resident_mb, profile.ota_limit_mb) == (512, 75)
    assert profile.to_dict()["os"] == {"name": "linux"}


def test_one_core_reads_no_more_than_all(tmp_path):
    one = "memory_bandwidth_one_core_gbps: "
    assert (
        load_profile(write(tmp_path, BOARD + one + "2.5\n")).memory_bandwidth_one_core_gbps == 2.5
    )
    message = "expected memory_bandwidth_one_core_gbps <= memory_bandwidth_gbps, got 5 and 4"
    assert message in error_of(write(tmp_path, BOARD + one + "5\n"))


# Finding one


def test_paths_and_names(tmp_path, monkeypatch):
    write(tmp_path, BOARD)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yml").write_text(BOARD)
    for path in (Path("board.yaml"), "board.yaml", "./board.yaml", "other.yml"):
        assert load_profile(path).name == "board"
    assert "expected the name of a profile" in error_of("board")


def test_user_directories_come_first(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, threads in ((first, 1), (second, 2)):
        folder.mkdir()
        for name in ("board", "pixel-8"):
            text = BOARD.replace("name: board", f"name: {name}", 1)
            write(folder, text.replace("threads: 4", f"threads: {threads}"), name)
        (folder / ".#board.yaml").write_text("an editor's lock")
    monkeypatch.setenv(profiles.ENVIRONMENT, os.pathsep.join([str(first), "", str(second)]))
    assert load_profile("board").default_threads == 1
    assert load_profile("pixel-8").default_threads == 1
    names = [profile.name for profile in list_profiles()]
    assert len(names) == len(FILES) + 1
    assert "board" in names
    monkeypatch.setenv(profiles.ENVIRONMENT, str(tmp_path / "missing"))
    assert "expected directories in BITNET_EDGE_DEVICES" in error_of("pixel-8")


def test_unknown_names_suggest_close_ones():
    text = error_of("rasberry-pi-5")
    assert "'raspberry-pi-5'" in text
    assert "'bitnet-edge devices' lists all" in text
    assert "did you mean" not in error_of("zzzzzz")
    assert "got ''" in error_of("")


def test_unreadable_files(tmp_path):
    assert "No such file" in error_of(tmp_path / "absent.yaml")
    assert "cannot read" in error_of(tmp_path)
    assert "cannot read" in error_of("a\0b.yaml")


def test_a_name_that_is_not_the_files(tmp_path, monkeypatch):
    write(tmp_path, BOARD, "bord")
    monkeypatch.setenv(profiles.ENVIRONMENT, str(tmp_path))
    assert f"{tmp_path}/bord.yaml:1:1: name: expected 'bord'" in error_of("bord")


# Families


def test_extends_replaces_whole_keys(tmp_path):
    write(tmp_path, BOARD)
    child = "name: child\ndescription: Child\nextends: board\nos: {name: any}\nram_mb: 2048\n"
    profile = load_profile(write(tmp_path, child, "child"))
    assert (profile.name, profile.ram_mb, profile.soc) == ("child", 2048, "SoC")
    assert profile.os == OperatingSystem("any")
    grandchild = "name: grand\ndescription: Grandchild\nextends: child\n"
    assert load_profile(write(tmp_path, grandchild, "grand")).ram_mb == 2048


def test_extends_finds_packaged_profiles(tmp_path):
    text = "name: mine\ndescription: Mine\nextends: pixel-8\nprivate_mb: 20\n"
    assert load_profile(write(tmp_path, text, "mine")).soc == "Google Tensor G3"


def test_extends_cycles_unknown_parents_and_long_chains(tmp_path):
    for name, parent in (("one", "two"), ("two", "three"), ("three", "one"), ("self", "self")):
        write(tmp_path, f"name: {name}\ndescription: D\nextends: {parent}\n", name)
    assert "three.yaml:3:1: extends: expected an end, got 'one' again" in error_of(
        tmp_path / "one.yaml"
    )
    assert "self.yaml:3:1: extends: expected an end" in error_of(tmp_path / "self.yaml")
    lost = write(tmp_path, "name: lost\ndescription: D\nextends: pixel-9\n", "lost")
    assert re.search(r"lost\.yaml:3:1: extends: .*'pixel-8'", error_of(lost))
    for index in range(10):
        parent = f"p{index + 1}" if index < 9 else "pixel-8"
        write(tmp_path, f"name: p{index}\ndescription: D\nextends: {parent}\n", f"p{index}")
    assert load_profile(tmp_path / "p2.yaml").soc == "Google Tensor G3"
    assert "expected at most 8 links" in error_of(tmp_path / "p0.yaml")


def test_a_conflict_with_an_inherited_key_is_told_where_the_child_says_it(tmp_path):
    write(tmp_path, BOARD)
    child = "name: child\ndescription: D\nextends: board\ncores: [{name: C, count: 2, ghz: 1}]\n"
    text = error_of(write(tmp_path, child, "child"))
    assert "child.yaml:4:1: expected default_threads <= cores, got 4 and 2" in text


def test_an_error_in_a_parent_names_the_parent(tmp_path):
    write(tmp_path, BOARD.replace("1024", "-1"))
    child = write(tmp_path, "name: child\ndescription: D\nextends: board\n", "child")
    assert "board.yaml:8:1: ram_mb: expected at least 64, got -1" in error_of(child)


# What is refused, and where

REPLACED = [  # (line of BOARD replaced, text, position, message)
    ("ram_mb: 1024", "ram: 1024", "8:1", "expected one of the keys name, "),
    ("ram_mb: 1024", "ram: 1024", "8:1", "got 'ram'; did you mean 'ram_mb'?"),
    ("ram_mb: 1024", "", "1:1", "expected the key 'ram_mb', got none"),
    ("name: board", "", "2:1", "expected the key 'name', got none"),
    ("ram_mb: 1024", "ram_mb: 1024MB", "8:1", "ram_mb: expected a whole number, got '1024MB'; wri"),
    ("ram_mb: 1024", "ram_mb: 1024.5", "8:1", "ram_mb: expected a whole number, got 1024.5"),
    ("ram_mb: 1024", "ram_mb:", "8:1", "ram_mb: expected a whole number, got nothing"),
    ("ram_mb: 1024", "ram_mb: true", "8:1", "ram_mb: expected a whole number, got true"),
    ("ram_mb: 1024", "ram_mb: 0x400", "8:1", "expected a whole number, got '0x400'"),
    ("ram_mb: 1024", "ram_mb: 01024", "8:1", "expected a whole number, got '01024'"),
    ("ram_mb: 1024", "ram_mb: 17:04", "8:1", "expected a whole number, got '17:04'"),
    ("ram_mb: 1024", f"ram_mb: {'9' * 5000}", "8:1", "expected a whole number, got '999"),
    ("ram_mb: 1024", "ram_mb: 4", "8:1", "ram_mb: expected at least 64, got 4"),  # gigabytes
    ("private_mb: 40.5", "private_mb: 50.1", "9:1", "private_mb: expected at most 50, got 50.1"),
    ("private_mb: 40.5", "private_mb: .inf", "9:1", "expected a number, got '.inf'"),
    ("private_mb: 40.5", "private_mb: 1e999", "9:1", "expected a number, got '1e999'"),
    ("page_kb: 4", "page_kb: 8", "12:1", "page_kb: expected one of 4, 16, 64, got 8"),
    ("soc: SoC", "soc: 2711", "3:1", "soc: expected text, got 2711; put it in quotes"),
    ("soc: SoC", "soc: [SoC]", "3:1", "soc: expected text, got a list"),
    ("soc: SoC", "soc: ''", "3:1", "soc: expected text matching "),
    ("soc: SoC", r'soc: "a\nb"', "3:6", r"expected printable text on one line, got 'a\nb'"),
    ("soc: SoC", r'soc: "\ud800"', "3:6", "expected printable text on one line"),
    ("name: board", "name: Board", "1:1", "name: expected text matching ^[a-z0-9]"),
    ("isa: [scalar, neon]", "isa: []", "4:1", "isa: expected 1 or more, got 0"),
    ("isa: [scalar, neon]", "isa: neon", "4:1", "isa: expected a list, got 'neon'"),
    ("scalar, neon]", "scalar, sve]", "4:15", "isa[1]: expected one of scalar, avx2,"),
    ("scalar, neon]", "neon, scalar]", "4:7", "isa[0]: expected scalar before neon, got none"),
    ("scalar, neon]", "scalar, i8mm]", "4:15", "isa[1]: expected dotprod before i8mm"),
    ("scalar, neon]", "scalar, scalar]", "4:15", "isa[1]: expected each name once"),
    ("scalar, neon]", "scalar, neon, avx2]", "4:1", "expected scalar and one processor family"),
    ("count: 4", "count: 0", "6:18", "cores[0].count: expected at least 1, got 0"),
    ("ghz: 1.5", "ghz: 1500", "6:28", "cores[0].ghz: expected at most 8, got 1500"),  # megahertz
    (", ghz: 1.5", "", "6:5", "cores[0]: expected the key 'ghz', got none"),
    ("ghz: 1.5", "mhz: 1500", "6:28", "cores[0]: expected one of the keys name, count, ghz"),
    ("name: linux", "name: beos", "11:6", "os.name: expected one of any, android"),
    ("'5.10'", "5.10", "11:19", "os.minimum: expected text, got 5.1; put it in quotes"),
    ("default_threads: 4", "default_threads: 5", "14:1", "expected default_threads <= cores"),
    ("page_kb: 4", "page_kb: 4\nresident_mb: 30", "9:1", "expected private_mb <= resident_mb"),
    ("page_kb: 4", "page_kb: 4\nresident_mb: 2048", "13:1", "expected resident_mb <= ram_mb"),
    ("page_kb: 4", "page_kb: 4\nram_mb: 64", "13:1", "each key once, got 'ram_mb', as in line 8"),
    ("page_kb: 4", "page_kb: 4\n7: x", "13:1", "expected a key that is text, got 7"),
    ("page_kb: 4", "page_kb: 4\n? [a]\n: x", "13:3", "expected a key that is text, got a list"),
    ("page_kb: 4", "page_kb: 4\n<<: {a: 1}", "13:1", "got '<<'"),
    ("page_kb: 4", "page_kb: &a 4", "12:10", "expected a plain value, got an anchor or an alias"),
    ("page_kb: 4", "page_kb: *a", "12:10", "expected a plain value, got an anchor or an alias"),
    ("page_kb: 4", "page_kb: !!int '4'", "12:10", "got the tag 'tag:yaml.org,2002:int'"),
    ("soc: SoC", "soc: !!python/object/new:os.system [ls]", "3:6", "got the tag"),
    ("page_kb: 4", "page_kb: [4", "13:16", "expected YAML, got an error while parsing a flow seq"),
    ("page_kb: 4", "\tpage_kb: 4", "12:1", "expected YAML, got an error while scanning"),
    ("soc: SoC", r'soc: "\U99999999"', "3:1", "expected YAML, got an escape or a number out"),
    ("soc: SoC", "soc: a\0b", "3:7", "expected text, got the character 0x0000"),
    ("default_threads: 4", "default_threads: 4\n---\nname: b", "15:1", "got a second one"),
]


@pytest.mark.parametrize(("old", "new", "position", "message"), REPLACED)
def test_errors_name_file_line_column_expected_and_found(tmp_path, old, new, position, message):
    assert BOARD.count(old) == 1
    path = write(tmp_path, BOARD.replace(old, new))
    text = error_of(path)
    assert text.startswith(f"[profile] {path}:{position}: ")
    assert message in text
    assert "\n" not in text


WHOLE = [
    (b"", "1:1", "expected a mapping, got an empty file"),
    (b"# nothing\n", "1:1", "expected a mapping, got an empty file"),
    (b"---\n", "2:1", "expected a mapping, got nothing"),
    (b"- a\n", "1:1", "expected a mapping, got a list"),
    (b"hello\n", "1:1", "expected a mapping, got 'hello'"),
    (b"name: b\nsoc: \xff\n", "2:6", "expected UTF-8, got the byte 0xff"),
    (b"\xff\xfen\0a\0", "1:1", "expected UTF-8"),
    (b"name: " + b"[" * 30000, "1:14", "expected at most 8 nested values"),
    (b"name: " + b"{a: " * 9, "1:32", "expected at most 8 nested values"),
    (b"- " * 30000, "1:17", "expected at most 8 nested values"),
    (b"#" * 65537, "1:1", "expected at most 65536 bytes"),
    (b"%YAML 1." + b"1" * 5000 + b"\n---\na: 1\n", "1:1", "expected YAML"),
]


@pytest.mark.parametrize(("data", "position", "message"), WHOLE, ids=[str(m) for *_, m in WHOLE])
def test_files_that_are_no_profile(tmp_path, data, position, message):
    path = write(tmp_path, data)
    text = error_of(path)
    assert text.startswith(f"[profile] {path}:{position}: ")
    assert message in text


def test_a_billion_laughs_are_refused_at_the_first(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(
        f"{new}: &{new} [*{old}, *{old}, *{old}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert ":1:4: expected a plain value, got an anchor" in error_of(write(tmp_path, bomb))


def test_marks_and_line_ends_of_other_systems(tmp_path):
    text = "\ufeff" + BOARD.replace("\n", "\r\n")
    assert load_profile(write(tmp_path, text)).name == "board"


def test_without_pyyaml_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependency, match=r"pip install 'bitnet-edge\[export\]'"):
        load_profile("pixel-8")


def test_importing_the_module_does_not_import_yaml():
    script = "import sys, bitnet_edge.profiles; print('yaml' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout == "False\n"


# The checks against jsonschema's

VALUES = [None, True, False, 0, 1, -1, 4, 4.0, 16, 50, 50.5, 64.5, 1e15, 3e300]
VALUES += ["", "a", "pixel-8", "Bad Name", "x" * 81, "1.2", "1.2.3.4", "scalar", "linux", "4"]
VALUES += [[], [1], ["scalar"], ["scalar", "sve"], {}, {"name": "any"}, {"name": 1}, {"x": 1}]


def mutated(rng: random.Random, document: object) -> object:
    """Change one to three things anywhere in a document."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        place, key = None, None
        inner = document
        while isinstance(inner, (dict, list)) and inner and (place is None or rng.random() < 0.5):
            place = inner
            key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = place[key]
        action = rng.randrange(4)
        if place is None:
            document = copy.deepcopy(rng.choice(VALUES))
        elif action == 0:
            del place[key]
        elif action == 1 and isinstance(place, dict):
            extra = rng.choice([*SCHEMA["properties"], "count", "colour"])
            place[extra] = copy.deepcopy(rng.choice(VALUES))
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return document


def test_our_verdicts_are_those_of_jsonschema():
    rng = random.Random(1)
    originals = [yaml.safe_load(path.read_text("utf-8")) for path in FILES]
    verdicts = {True: 0, False: 0}
    for _ in range(6000):
        document = mutated(rng, rng.choice(originals))
        try:
            check(SCHEMA, located(document))
            ours = True
        except ProfileError:
            ours = False
        assert ours == JUDGE.is_valid(document), document
        verdicts[ours] += 1
    assert min(verdicts.values()) > 300, verdicts


def test_a_keyword_that_is_not_implemented_is_refused():
    with pytest.raises(ValueError, match="uniqueItems"):
        check({"type": "array", "uniqueItems": True}, located([]))


def test_the_schema_describes_every_key():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for key, schema in SCHEMA["properties"].items():
        assert len(schema["description"]) > 10, key


# Fuzzing

SPLICES = [b": ", b"- ", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"!!int ", b"'", b'"', b"|\n", b"#"]
SPLICES += [b"\n", b"\t", b"\0", b"\xff", b"\xc3\xa9", b"? ", b"<<: ", b"---\n", b"%YAML 1.1\n"]
SPLICES += [b"\\U00110000", b'"\\', b"9" * 400, b"-", b".", b"\r", b"\xe2\x80\xa8", b"extends: a\n"]


def test_hostile_files_end_in_a_profile_or_a_profile_error(tmp_path):
    rng = random.Random(2)
    originals = [path.read_bytes() for path in FILES] + [BOARD.encode()] * 9
    outcomes = {"profile": 0, "error": 0}
    for _ in range(2000):
        data = bytearray(re.sub(rb"(?m)^#.*\n", b"", rng.choice(originals)))
        for _ in range(rng.choice([1, 1, 2, 3, 8])):
            at = rng.randrange(len(data) + 1)
            end = min(len(data), at + rng.choice([0, 1, 1, 4, 40]))
            splice = rng.choice([*SPLICES, bytes([rng.randrange(256)]), bytes(data[at:end]) * 2])
            data[at:end] = splice
        if rng.random() < 0.1:
            del data[rng.randrange(len(data) + 1) :]
        path = write(tmp_path, bytes(data), "fuzz")
        try:
            profile = load_profile(path)
        except ProfileError as error:
            outcomes["error"] += 1
            assert re.match(
                r"\[profile\] .*\.yaml:\d+:\d+: ([\w.\[\]]+: )?expected ", str(error)
            ), str(error)
        else:
            outcomes["profile"] += 1
            JUDGE.validate(profile.to_dict())
    assert min(outcomes.values()) > 100, outcomes
