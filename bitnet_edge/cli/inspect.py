# SPDX-License-Identifier: MIT
"""``bitnet-edge inspect FILE``: the model readably, memory, sections, optionally the program."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from bitnet_edge.cli.text import print_json, size, table
from bitnet_edge.container import BteFile, open_bte
from bitnet_edge.graph import Graph, Kind, Node

__all__ = ["configure", "describe_graph", "run"]

_LAYER = re.compile(r"^layers\.(\d+)\.")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", help="a .bte file")
    parser.add_argument("--program", action="store_true", help="list the instructions too")
    parser.add_argument("--verify", action="store_true", help="check the sections' checksums")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _window(plan: Mapping[str, Any]) -> str:
    if not plan.get("window"):
        return ""
    return f" (window {plan['window']}, sinks {plan['sinks']}, sequences without end)"


def run(args: argparse.Namespace) -> int:
    """Print what the file holds."""
    file = open_bte(args.file)
    if args.verify:
        file.verify()
    graph = Graph.from_json(file.graph_json())
    if args.json:
        print_json(_as_json(file, graph))
        return 0
    model, plan = file.model, file.plan
    print(f"{file.path}: {model['name']} ({model['architecture']}), {size(file.size)}")
    print(
        f"planned for {plan['profile']}: context {plan['context']}{_window(plan)}, "
        f"{plan['kv_dtype']} KV cache, "
        f"{plan.get('head_dtype', 'stored')} head, "
        f"prefill chunk {plan['prefill_chunk']}, threads {plan['threads']}, "
        f"weights {plan['residency']}"
    )
    print("\nmodel")
    for line in describe_graph(graph):
        print(f"  {line}")
    print("\nprivate memory")
    rows = [(name, size(count)) for name, count in plan["private_bytes"].items()]
    rows += [("total", size(plan["needed_bytes"])), ("allowed", size(plan["allowed_bytes"]))]
    print(table(rows, right=(1,)))
    print("\nsections")
    sections = file.sections.values()
    lines = [(s.name, f"@{s.offset}", size(s.bytes), s.sha256[:16]) for s in sections]
    print(table(lines, right=(1, 2)))
    if args.program:
        print("\nprogram")
        for index, line in enumerate(_program_lines(file)):
            print(f"  {index:4d} {line}")
    if args.verify:
        print("\nchecksums match")
    return 0


def describe_graph(graph: Graph) -> Iterator[str]:
    """Yield about ten lines a layer; runs of identical layers are shown once."""
    groups: list[tuple[str | None, list[Node]]] = [
        (layer, list(nodes)) for layer, nodes in groupby(graph.nodes, key=_layer_of)
    ]
    for _, run_of in groupby(groups, key=lambda group: _signature(graph, *group)):
        members = list(run_of)
        layer, nodes = members[0]
        if layer is not None:
            last = members[-1][0]
            times = f" .. {last}, {len(members)} identical layers" if len(members) > 1 else ""
            yield f"layer {layer}{times}"
        indent = "  " if layer is not None else ""
        for line in _node_lines(graph, nodes):
            yield indent + line


def _layer_of(node: Node) -> str | None:
    match = _LAYER.match(node.name)
    return match.group(1) if match else None


def _signature(graph: Graph, layer: str | None, nodes: list[Node]) -> object:
    """Return what must be equal for two layers to be shown as one: everything but the scales."""
    if layer is None:
        return nodes[0].name
    return tuple(
        (
            node.op,
            _short(node.name),
            tuple(str(graph.tensors[name]) if name else "" for name in node.inputs),
            tuple(
                (key, value)
                for key, value in node.attributes.items()
                if (node.op, key) != ("ternary_linear", "scale")
            ),
        )
        for node in nodes
    )


def _short(name: str) -> str:
    return _LAYER.sub("", name)


def _node_lines(graph: Graph, nodes: Iterable[Node]) -> Iterator[str]:
    """Yield one line a node; ternary linears of one input share a line."""
    for _, same in groupby(
        nodes, key=lambda n: (n.op, n.inputs[0] if "linear" in n.op else n.name)
    ):
        members = list(same)
        first = members[0]
        names = ", ".join(_short(node.name) for node in members)
        operands = [name for name in first.inputs if name]
        weights = [
            n
            for node in members
            for n in node.inputs
            if n and graph.tensors[n].kind is Kind.CONSTANT
        ]
        shown = ", ".join(str(graph.tensors[name]) for name in weights)
        source = ", ".join(
            _short(name) for name in operands if graph.tensors[name].kind is not Kind.CONSTANT
        )
        attributes = "" if len(members) > 1 else _attributes(first)
        yield f"{names} = {first.op}({source}) {shown}{attributes}".rstrip()


def _attributes(node: Node) -> str:
    shown = [
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in node.attributes.items()
    ]
    return f"  {{{', '.join(shown)}}}" if shown else ""


def _program_lines(file: BteFile) -> Iterator[str]:
    from bitnet_edge.program import decode_program

    for record in decode_program(file.section("program")):
        operands = " ".join(
            f"{name}={region}{f'#{port}' if region in ('input', 'output') else f'+{offset}'}"
            for name, (region, port, offset) in record.operands.items()
        )
        numbers = " ".join(
            [f"{name}={value}" for name, value in record.dims.items()]
            + [f"{name}={value:.6g}" for name, value in record.scalars.items()]
        )
        yield f"{'tail ' if record.tail else ''}{record.op} {numbers} {operands}"


def _as_json(file: BteFile, graph: Graph) -> dict[str, Any]:
    return {
        "path": file.path,
        "bytes": file.size,
        "model": file.model,
        "plan": file.plan,
        "sections": [
            {"name": s.name, "offset": s.offset, "bytes": s.bytes, "sha256": s.sha256}
            for s in file.sections.values()
        ],
        "tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.bytes}
            for t in file.tensors
        ],
        "graph": graph.to_json(),
    }
