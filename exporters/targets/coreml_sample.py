# SPDX-License-Identifier: MIT
"""What lies beside the model in a Core ML package: a README, a Swift sample, the tokenizer.

They are in the package's folder ``bitnet-edge``, so that one rename puts all in place.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from bitnet_edge.exporters.targets.coreml_emitter import AFTER, POSITION, identifier
from bitnet_edge.exporters.targets.target import VERIFICATION_KEY

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.exporters.targets.target import Settings

__all__ = ["FOLDER", "write_companions"]

FOLDER = "bitnet-edge"

README = Template("""\
# $model

A Core ML package of form `$form`: $why. It needs $minimum.

| | |
|---|---|
| functions | $functions |
| inputs | $inputs |
| outputs | $outputs |
| context | $context |

$running

What was verified, and by what, is the JSON under `$key` in the model's metadata (Xcode shows it;
`MLModel.modelDescription.metadata[.creatorDefinedKey]` in Swift). It is `none` where nothing was.
No Apple device, and no compiler of Apple's, has seen this package when it is written on Linux.

Activations are rounded to integers by MIL's `round`. The reference rounds halves to even, as
coremltools does where it folds constants; of halves the documents say only that 0.5 becomes 0.

$files
""")

TOKENIZER_NOTE = (
    "`tokenizer.section` is the tokenizer as bitnet-edge's `.bte` files hold it "
    "(`tokenizer_format.md`)."
)
SAMPLE_NOTE = (
    "`Generate.swift` is a sample of a greedy decoder; it has been compiled nowhere. It uses one "
    "state with both functions, which has been tried nowhere here, either."
)


STATEFUL = """\
Run a prompt through the function `prefill`, at most $chunk tokens at a time, then each new token
through `decode`, always with the same state, which `makeState()` gives filled with zeros.
`position` is the number of tokens that the state holds before the run."""
CACHES = """\
Run at most $chunk tokens at a time. Give zeros for the caches at first, then what came out of them
(in / out: $caches). `position` is the number of tokens that the
caches hold before the run."""

SWIFT = Template("""\
// Greedy decoding with $model. A sample: compiled nowhere yet.
import CoreML

final class Generator {
    private let prefill: MLModel
    private let decode: MLModel
    private let state: MLState
    private var position = 0
    private let context = $context
    private let chunk = $chunk

    /// `url`: the compiled model (`MLModel.compileModel(at:)`, or what Xcode put into the app).
    init(url: URL) throws {
        func load(_ function: String) throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.functionName = function
            return try MLModel(contentsOf: url, configuration: configuration)
        }
        prefill = try load("prefill")
        decode = try load("decode")
        state = decode.makeState()
    }

    /// Runs tokens from the current position and returns the logits of the last one.
    private func run(_ tokens: ArraySlice<Int32>) throws -> [Float] {
        precondition(!tokens.isEmpty && position + tokens.count <= context)
        let ids = MLShapedArray<Int32>(scalars: tokens, shape: [tokens.count])
        let start = MLShapedArray<Int32>(scalars: [Int32(position)], shape: [1])
        let inputs = try MLDictionaryFeatureProvider(dictionary: [
            "$ids": MLFeatureValue(shapedArray: ids),
            "$position": MLFeatureValue(shapedArray: start),
        ])
        let model = tokens.count == 1 ? decode : prefill
        let outputs = try model.prediction(from: inputs, using: state)
        position += tokens.count
        let logits = MLShapedArray<Float>(outputs.featureValue(for: "$logits")!.multiArrayValue!)
        return logits[logits.shape[0] - 1].scalars
    }

    /// Calls `next` with each token; stops at an end of text, at a full context, or on false.
    func generate(prompt: [Int32], next: (Int32) -> Bool) throws {
        var logits: [Float] = []
        for first in stride(from: 0, to: prompt.count, by: chunk) {
            logits = try run(prompt[first..<min(first + chunk, prompt.count)])
        }
        let ends: Set<Int32> = [$ends]
        while true {
            let token = Int32(logits.indices.max { logits[$$0] < logits[$$1] }!)
            if ends.contains(token) || !next(token) || position == context { return }
            logits = try run([token][...])
        }
    }
}
""")


def write_companions(
    source: ModelSource, settings: Settings, package: Path, *, stateful: bool
) -> None:
    """Write README, tokenizer and, for a decoder with states, the sample."""
    graph, folder = source.graph, package / FOLDER
    folder.mkdir()
    shared = {
        "model": graph.info.name,
        "context": settings.context,
        "chunk": settings.prefill_chunk,
        "position": POSITION,
    }
    running = STATEFUL if stateful else CACHES if graph.states() else "Run any rows through `main`."
    pairs = (f"`{identifier(s.name)}` / `{identifier(s.name + AFTER)}`" for s in graph.states())
    shared["caches"] = ", ".join(pairs)
    ports = [*graph.inputs, *([POSITION] if graph.states() else [])]
    readme = README.substitute(
        shared,
        form=settings.form.name,
        why=settings.form.why,
        minimum=settings.form.minimum,
        functions="`prefill`, `decode`" if stateful else "`main`",
        inputs=", ".join(f"`{identifier(name)}`" for name in ports),
        outputs=", ".join(f"`{identifier(name)}`" for name in graph.outputs),
        running=Template(running).substitute(shared),
        key=VERIFICATION_KEY,
        files=" ".join(
            note
            for note, there in (
                (TOKENIZER_NOTE, source.tokenizer is not None),
                (SAMPLE_NOTE, stateful and graph.info.vocab_size),
            )
            if there
        ),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    if source.tokenizer is not None:
        (folder / "tokenizer.section").write_bytes(source.tokenizer)
    if stateful and graph.info.vocab_size:
        swift = SWIFT.substitute(
            shared,
            ids=identifier(graph.inputs[0]),
            logits=identifier(graph.outputs[0]),
            ends=", ".join(map(str, graph.info.eos_ids)),
        )
        (folder / "Generate.swift").write_text(swift, encoding="utf-8")
