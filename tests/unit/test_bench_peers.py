# SPDX-License-Identifier: MIT
"""What `bench --vs` gives to other engines, and what it does when they are missing or refuse."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from bitnet_edge.bench import measure, peers, products
from bitnet_edge.cli import main
from bitnet_edge.errors import ModelError
from bitnet_edge.exporters.sources import synthetic
from tests.conftest import require_module
from tests.unit.test_synth import TINY

QUICK = ["--runs", "1", "--new-tokens", "4", "--prompt-tokens", "8,16"]


@pytest.fixture(autouse=True, scope="module")
def peers_installed():
    for name in ("ai_edge_litert", "flatbuffers", "gguf", "onnx", "onnxruntime"):
        require_module(name)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(synthetic.GEOMETRIES, "tiny", TINY)
    monkeypatch.setattr(measure.read_buffer, "__defaults__", (1 << 20,))
    return "tiny"


def test_the_gguf_holds_the_same_model(tmp_path):
    import gguf

    from bitnet_edge.bench.gguf_model import write_gguf

    config = synthetic.GEOMETRIES["20m-class"]
    write_gguf(tmp_path / "m.gguf", "20m-class", config)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {t.name: (t.tensor_type.name, tuple(int(n) for n in t.shape)) for t in reader.tensors}
    assert found["token_embd.weight"] == ("Q6_K", (512, 8192))
    assert found["blk.7.ffn_down.weight"] == ("TQ2_0", (1536, 512))
    assert found["blk.0.ffn_sub_norm.weight"] == ("F32", (1536,))
    assert len(found) == 2 + 8 * 11
    raw = next(t for t in reader.tensors if t.name == "blk.0.attn_q.weight").data
    assert gguf.dequantize(raw, gguf.GGMLQuantizationType.TQ2_0).shape == (512, 512)
    codes = set((gguf.dequantize(raw, gguf.GGMLQuantizationType.TQ2_0) / 0.02).round(2).ravel())
    assert codes == {-1, 0, 1}


class FakeLlama:
    """Just enough of llama-cpp-python's low-level API; counts what is asked of it."""

    __version__ = "0.0"
    llama_token = __import__("ctypes").c_int32

    def __init__(self, fail: str = "") -> None:
        self.fail = fail
        self.calls: list[str] = []
        self.decoded: list[int] = []

    def __getattr__(self, name: str):
        def call(*args):
            self.calls.append(name)
            if name == "llama_decode":
                self.decoded.append(args[1])
                return 1 if self.fail == name else 0
            if name == "llama_batch_get_one":
                return args[1]
            if name in ("llama_model_default_params", "llama_context_default_params"):
                return SimpleNamespace()
            return None if self.fail == name else SimpleNamespace()

        return call


def test_llama_cpp_runs_in_alternation(tiny, monkeypatch, capsys):
    fake = FakeLlama()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    monkeypatch.setattr(peers, "write_gguf", lambda path, name, config: path.touch())
    command = ["bench", "--geometry", tiny, *QUICK, "--threads", "1", "--vs", "llama-cpp"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "against llama.cpp, 1 thread" in out
    assert "prefill 16" in out
    decoded = [8, 16] + [1] * 17  # the context holds no more
    assert fake.decoded == 2 * decoded, "a round to warm up and one that counts"
    assert fake.calls.count("llama_free") == 1
    assert fake.calls.count("llama_model_free") == 1


@pytest.mark.parametrize("step", ["llama_model_load_from_file", "llama_init_from_model"])
def test_a_model_that_llama_cpp_refuses(tmp_path, monkeypatch, step):
    monkeypatch.setitem(sys.modules, "llama_cpp", FakeLlama(step))
    with pytest.raises(ModelError, match=r"llama\.cpp cannot"):
        peers.LlamaCpp(tmp_path / "x.gguf", 1, 16)


def test_a_failing_llama_decode_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", FakeLlama("llama_decode"))
    with peers.LlamaCpp(tmp_path / "x.gguf", 1, 16) as peer, pytest.raises(ModelError, match="1"):
        peer.run([1])


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("gguf", ["--geometry", "tiny", *QUICK, "--vs", "llama-cpp"]),
        ("llama_cpp", ["--geometry", "tiny", *QUICK, "--vs", "llama-cpp"]),
        ("ai_edge_litert", ["--vs", "litert", "--runs", "1"]),
        ("onnxruntime", ["--vs", "onnxruntime", "--runs", "1"]),
    ],
)
def test_missing_peers_are_named(tiny, monkeypatch, capsys, package, arguments):
    if package == "llama_cpp":
        monkeypatch.setattr(peers, "write_gguf", lambda path, name, config: path.touch())
    for name in [n for n in sys.modules if n.startswith("bitnet_edge.exporters.targets.")]:
        monkeypatch.delitem(sys.modules, name)  # other tests may have imported them
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["bench", *arguments]) == 2
    extra = {"ai_edge_litert": "litert", "onnxruntime": "onnx"}.get(package, "bench")
    assert f"pip install 'bitnet-edge[{extra}]'" in capsys.readouterr().err


def test_products_agree_with_the_float_product(monkeypatch, capsys):
    monkeypatch.setattr(products, "_CALLS", 1)
    assert main(["bench", "--vs", "litert", "--vs", "onnxruntime", "--runs", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["products"]["rows"]
    assert [row["engine"] for row in rows] == ["bitnet-edge", "litert", "onnxruntime"]
    assert all(float(row["error"]) < 0.02 for row in rows), rows
