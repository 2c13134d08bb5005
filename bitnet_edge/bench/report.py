# SPDX-License-Identifier: MIT
"""What `bitnet-edge bench` prints."""

from __future__ import annotations

from bitnet_edge.cli.text import counted, size, table

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["lines"]


def lines(data: dict[str, Any]) -> Iterator[str]:
    """Yield the report."""
    for result in data.get("models", ()):
        yield from _model(result)
        yield ""
    for result in data.get("llama-cpp", ()):
        yield from _llama_cpp(result)
        yield ""
    if "kernel_rows" in data:
        yield "kernels"
        yield _columns(data["kernel_rows"])
        yield ""
    if "products" in data:
        yield f"one product, {data['products']['shape']}, one thread, in cache"
        yield _columns(data["products"]["rows"])
        yield ""


def _model(r: dict[str, Any]) -> Iterator[str]:
    yield f"{r['model']}, {counted(r['threads'], 'thread')}, medians of {r['runs']} rounds"
    rows = [
        (
            "prefill",
            f"{p['tokens_per_second']:.0f} tokens/s",
            f"{p['tokens']} tokens, {p['gmac_per_s']:.1f} GMAC/s, "
            f"{p['percent_of_gemm']:.0f} % of the standalone GEMM rate",
        )
        for p in r["prefill"]
    ]
    rows += [
        (
            "decode",
            f"{r['decode_tokens_per_second']:.0f} tokens/s",
            f"{r['new_tokens']} tokens, {r['decode_us_per_token']:.1f} us each, Python included",
        ),
        (
            "  engine",
            f"{r['decode_engine_us']:.1f} us",
            f"{size(r['decode_bytes'])} a token at {r['decode_gb_per_s']:.1f} GB/s, "
            f"{r['decode_gmac_per_s']:.1f} GMAC/s",
        ),
        (
            "  of bandwidth",
            f"{r['decode_percent_of_read']:.0f} %",
            f"of {r['read_gbps']:.1f} GB/s streaming read in the same rounds"
            + ("" if r["decode_bytes"] > 64 << 20 else "; small enough for a cache"),
        ),
        *_rescored(r),
        ("  sampling", f"{r['decode_sampling_us']:.1f} us", ""),
        (
            "  Python",
            f"{r['decode_python_us']:.1f} us",
            f"{r['decode_python_percent']:.1f} %",
        ),
        (
            "calibration",
            f"{r['calibration_ns'] / 1000:.1f} us",
            ", ".join(f"{name} = {ratio:.3g} of it" for name, ratio in r["ratios"].items()),
        ),
        (
            "private memory",
            size(r["process_private_bytes"]),
            "the whole process, interpreter included",
        ),
    ]
    yield table(rows, right=(1,))
    yield "time of a decoded token"
    yield _columns(r["decode_ops"])
    yield f"time of a prompt of {r['prefill'][-1]['tokens']} tokens"
    yield _columns(r["prefill_ops"])


def _rescored(r: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    percent = r["head_rescored_percent"]
    if percent is not None:
        yield "  exact rows", f"{percent:.3f} %", "of the screened head, in greedy decoding"


def _llama_cpp(r: dict[str, Any]) -> Iterator[str]:
    yield f"against llama.cpp, {counted(r['threads'], 'thread')}: {r['what']}"
    yield _columns(r["rows"])


_FORMATS = {
    "us": ".1f",
    "ms": ".3f",
    "percent": ".1f",
    "percent_of_read": ".0f",
    "x_scalar": ".1f",
    "x_gemv": ".2f",
    "ratio": ".2f",
}


def _columns(rows: list[dict[str, Any]]) -> str:
    """Return dictionaries as a table; what a row lacks stays empty."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[key.replace("_", " ") for key in keys]]
    for row in rows:
        cells.append([_cell(key, row.get(key)) for key in keys])
    text = {key for row in rows for key, value in row.items() if isinstance(value, str)}
    return table(cells, right=[i for i, key in enumerate(keys) if key not in text])


def _cell(key: str, value: object) -> str:
    if isinstance(value, float):
        return format(value, _FORMATS.get(key, ".1f"))
    return "" if value is None else str(value)
