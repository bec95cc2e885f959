"""The prepared model on disk: the backbone, the experts and the routers as plain .npy files.

Called by main.py (prepare) and by the ranks (load, memory-mapped, so that all ranks share one copy in the
page cache and each touches only its own experts). A preparation lies in a folder named after everything it
depends on and appears there by one rename, so a folder that exists is complete. Not here: how the split is
made (moefication.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from dense import load_backbone
from errors import DemoError
from experts import MoeWeights
from gguf_file import GgufModel, ModelConfig, file_digest
from llama import Backbone, Chunk, KvCache, Llama
from moefication import LayerWeights, fit_router, group_neurons
from tokenizer import ChatTokenizer

HERE = Path(__file__).resolve().parent
CALIBRATION = HERE / "texts" / "calibration.txt"
# A change in any of these changes the result, so all are part of the folder's name.
SOURCES = ("prepare.py", "moefication.py", "dense.py", "llama.py", "gguf_file.py", "texts/calibration.txt")
MANIFEST = "manifest.json"
BACKBONE_ARRAYS = ("embedding", "attn_norm", "qkv", "attn_out", "ffn_norm", "output_norm")
MOE_ARRAYS = ("router_weight", "router_bias", "gate_up", "down")

Progress = Callable[[int, int], None]  # (layers done, layers in all)


@dataclass(frozen=True)
class Prepared:
    """A loaded preparation."""

    backbone: Backbone
    moe: MoeWeights


def cache_key(model_file: Path, experts: int) -> str:
    """A name for everything that a preparation depends on."""
    parts = [f"experts={experts}", f"numpy={np.__version__}", file_digest(model_file)]
    parts += [file_digest(HERE / name) for name in SOURCES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def find_or_prepare(
    model: GgufModel, tokenizer: ChatTokenizer, experts: int, cache: Path, progress: Progress
) -> Path:
    """The folder of the preparation, made now if it is not there."""
    if model.config.ffn % experts:
        raise DemoError(f"--experts {experts} does not divide the {model.config.ffn} neurons of a layer")
    folder = cache / f"moe-{experts}-{cache_key(model.path, experts)}"
    if folder.is_dir():
        return folder
    try:
        _prepare_into(folder, model, tokenizer, experts, progress)
    except OSError as error:
        raise DemoError(
            f"cannot write the prepared model below {cache}: {error}; "
            "free about 600 MB there or choose another folder with --cache"
        ) from error
    return folder


def _prepare_into(
    folder: Path, model: GgufModel, tokenizer: ChatTokenizer, experts: int, progress: Progress
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        backbone = load_backbone(model)
        for name in BACKBONE_ARRAYS:
            np.save(unfinished / f"{name}.npy", getattr(backbone, name))
        chunks = calibration_chunks(model.config, tokenizer)
        splitter = LayerSplitter(model, experts, unfinished, progress)
        # The dense model reads the calibration text once; as each layer gets its input, it is split.
        Llama(backbone).forward(chunks, splitter)
        splitter.flush()
        (unfinished / MANIFEST).write_text(json.dumps({"config": asdict(model.config)}))
        _publish(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: Path, folder: Path) -> None:
    try:
        os.rename(unfinished, folder)
    except OSError:
        # Another run of the demo was faster. Its folder has the same content.
        if not folder.is_dir():
            raise


def calibration_chunks(config: ModelConfig, tokenizer: ChatTokenizer) -> list[Chunk]:
    """The calibration text as chats, each a sequence of its own."""
    chunks = []
    for section in CALIBRATION.read_text(encoding="utf-8").split("\n---\n"):
        question, answer = section.split("\n", 1)
        tokens = tokenizer.encode_chat(question) + tokenizer.encode(answer)
        chunks.append(Chunk(tokens, KvCache(config, len(tokens))))
    return chunks


class LayerSplitter:
    """Stands in for the feed-forward network of the dense model, and writes its experts as it goes."""

    def __init__(self, model: GgufModel, experts: int, folder: Path, progress: Progress) -> None:
        config = model.config
        size = config.ffn // experts
        shapes = {
            "router_weight": (config.layers, experts, config.hidden),
            "router_bias": (config.layers, experts),
            "gate_up": (config.layers, experts, 2 * size, config.hidden),
            "down": (config.layers, experts, size, config.hidden),
        }
        self._model = model
        self._experts = experts
        self._progress = progress
        self._arrays = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)
            for name, shape in shapes.items()
        }

    def __call__(self, layer: int, x: np.ndarray) -> np.ndarray:
        names = ("gate", "up", "down")
        weights = LayerWeights(*(self._model.layer_tensor(layer, f"ffn_{name}") for name in names))
        activations = weights.activations(x)
        groups = group_neurons(weights, activations, self._experts, seed=layer)
        router = fit_router(weights, groups, x, activations)
        self._arrays["router_weight"][layer] = router.weight
        self._arrays["router_bias"][layer] = router.bias
        self._arrays["gate_up"][layer] = np.concatenate([weights.gate[groups], weights.up[groups]], axis=1)
        self._arrays["down"][layer] = weights.down.T[groups]
        self._progress(layer + 1, self._model.config.layers)
        return activations @ weights.down.T

    def flush(self) -> None:
        """Everything written; a full disk is noticed here and not by a rank."""
        for array in self._arrays.values():
            array.flush()


def load(folder: Path) -> Prepared:
    """Map a preparation into memory; nothing is read until it is used."""
    config = ModelConfig(**json.loads((folder / MANIFEST).read_text())["config"])

    def mapped(name: str) -> np.ndarray:
        # A plain array over the mapping: slicing numpy.memmap itself costs microseconds each time.
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    return Prepared(
        backbone=Backbone(config=config, **{name: mapped(name) for name in BACKBONE_ARRAYS}),
        moe=MoeWeights(**{name: mapped(name) for name in MOE_ARRAYS}),
    )
