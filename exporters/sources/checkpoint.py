# SPDX-License-Identifier: MIT
"""A checkpoint directory's tensors: one safetensors file, or shards with their index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge.errors import MissingTensor, ModelError
from bitnet_edge.exporters.sources.json_file import read_object
from bitnet_edge.exporters.sources.safetensors_file import (
    BLOCK_BYTES,
    SafetensorsFile,
    TensorInfo,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Checkpoint", "open_checkpoint"]


class Checkpoint:
    """The tensors of one or several safetensors files under one roof.

    Parameters
    ----------
    path : Path
        The directory, for messages.
    files : Mapping[str, SafetensorsFile]
        The file of each tensor.
    """

    def __init__(self, path: Path, files: Mapping[str, SafetensorsFile]) -> None:
        self.path = path
        self._files = dict(files)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def info(self, name: str) -> TensorInfo:
        """See `SafetensorsFile.info`."""
        return self._file(name).info(name)

    def array(self, name: str) -> NDArray[Any]:
        """See `SafetensorsFile.array`."""
        return self._file(name).array(name)

    def row_blocks(
        self, name: str, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """See `SafetensorsFile.row_blocks`."""
        return self._file(name).row_blocks(name, block_bytes)

    def release(self, name: str) -> None:
        """See `SafetensorsFile.release`."""
        self._file(name).release(name)

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._files[name]
        except KeyError:
            raise MissingTensor(f"[checkpoint] no tensor {name!r} in {str(self.path)!r}") from None


def open_checkpoint(directory: Path) -> Checkpoint:
    """Map a checkpoint directory: ``model.safetensors``, or the shards of its index.

    As transformers does, the single file is preferred where both exist.

    Raises
    ------
    ModelError
        When neither exists, or index and shards contradict each other.
    MissingTensor
        When a shard lacks a tensor that the index places in it.
    FormatError
        When a file is malformed.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        file = SafetensorsFile(single)
        return Checkpoint(directory, dict.fromkeys(file.names, file))
    if index.exists():
        return Checkpoint(directory, _open_shards(index))
    pickled = any(directory.glob("pytorch_model*.bin"))
    hint = "; pickled pytorch_model*.bin files are not read, convert them" if pickled else ""
    raise ModelError(
        f"[checkpoint] expected {single.name} or {index.name} in {str(directory)!r}, found "
        f"neither{hint}"
    )


def _open_shards(index: Path) -> dict[str, SafetensorsFile]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"[checkpoint] expected an object 'weight_map' in {str(index)!r}")
    for name, shard in weight_map.items():
        # A bare file name: an index may not reach outside its directory.
        if not isinstance(shard, str) or shard in {"", ".", ".."} or set(shard) & set("/\\\0"):
            raise ModelError(
                f"[checkpoint] expected a file name without a path as the shard of {name!r}, got "
                f"{shard!r} ({index})"
            )
    shards: dict[str, SafetensorsFile] = {}
    for shard in dict.fromkeys(weight_map.values()):
        path = index.parent / shard
        if not path.exists():
            raise ModelError(f"[checkpoint] shard {shard!r} is missing ({index})")
        shards[shard] = SafetensorsFile(path)
    for shard, file in shards.items():
        for name in file.names:
            home = weight_map.get(name)
            if home is None:
                raise ModelError(
                    f"[checkpoint] tensor {name!r} of shard {shard!r} is not in the index ({index})"
                )
            if home != shard and name in shards[home]:
                raise ModelError(
                    f"[checkpoint] tensor {name!r} is in two shards, {home!r} and {shard!r} "
                    f"({index})"
                )
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise MissingTensor(
                f"[checkpoint] the index places {name!r} in {shard!r}, which lacks it ({index})"
            )
    return {name: shards[shard] for name, shard in weight_map.items()}
