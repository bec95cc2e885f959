"""Text to token ids and back: byte-level BPE rebuilt from the tables inside the GGUF file.

Called by main.py and prepare.py. Not here: the model, and the ranks (they only see token ids).
"""

from __future__ import annotations

from typing import Any

from errors import INSTALL_HINT, DemoError
from gguf_file import GgufModel

# What the model's own chat template adds before the first user message.
SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CONTROL_TOKEN = 3  # GGUF's token_type of special tokens such as <|im_start|>


class ChatTokenizer:
    """Encodes plain text and chat prompts; decodes ids to text."""

    def __init__(self, model: GgufModel) -> None:
        self._bpe = _build_bpe(model)
        self.end_id = int(model.field("tokenizer.ggml.eos_token_id"))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written out in it are recognised."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_chat(self, user: str) -> list[int]:
        """Token ids of one user message, up to where the assistant starts to answer."""
        return self.encode(
            f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
            f"<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def decode(self, ids: list[int]) -> str:
        """The text of some token ids, without the special ones."""
        return self._bpe.decode(ids, skip_special_tokens=True)


def _build_bpe(model: GgufModel) -> Any:
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise DemoError(f"the Python package 'tokenizers' is missing; {INSTALL_HINT}") from error
    kind = (model.field("tokenizer.ggml.model"), model.field("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise DemoError(f"{model.path} has tokenizer {kind}; this demo builds ('gpt2', 'smollm')")
    tokens = model.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in model.field("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # "smollm": every digit alone, then GPT-2's byte-level splitting.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    types = model.field("tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    return bpe
