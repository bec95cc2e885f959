"""What test_moe_llm.py runs in a process of its own: the demo's stages, with a random model of a few kilobytes.

`serve RANKS LAYER:EXPERT|none QUANT|none FORM` prepares, generates, reports and checks as examples/moe_llm/demo.py
does, in the current folder; exits with 1 if a check failed. FORM is `colocated`, `rebalance`, or `A:direct` and
`A:trampoline` for A attention ranks. `perplexity` compares the demo's figure with a slow, obvious one.
Only the GGUF file and the real tokenizer are replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "moe_llm"
sys.path.insert(0, str(EXAMPLE))

import demo  # noqa: E402  the example's folder is on the path only now
import numpy as np  # noqa: E402
import prepare  # noqa: E402
from gguf_file import ModelConfig  # noqa: E402
from truth import Truth, perplexity  # noqa: E402

VOCABULARY, EXPERTS, TOPK = 131, 8, 6
PROMPTS = [(3, "one"), (9, "two and a longer one"), (1, "x"), (14, "four"), (5, "five, the last")]
MOVING_LONGER = 4  # times as much text, so that there is some after experts have moved


class TinyModel:
    """The part of GgufModel that the stages use: a Llama with random weights."""

    path = Path(__file__)  # part of the name of the preparation
    config = ModelConfig(
        layers=3, hidden=32, ffn=64, heads=4, kv_heads=2, context=512, rope_base=1e4, norm_eps=1e-5
    )

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        c = self.config
        kv = c.kv_heads * c.head_dim

        def matrix(outputs: int, inputs: int) -> np.ndarray:
            return (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

        shapes = {"attn_q": (c.hidden, c.hidden), "attn_k": (kv, c.hidden), "attn_v": (kv, c.hidden)}
        shapes |= {"attn_output": (c.hidden, c.hidden), "ffn_down": (c.hidden, c.ffn)}
        shapes |= {"ffn_gate": (c.ffn, c.hidden), "ffn_up": (c.ffn, c.hidden)}
        self._tensors = {"token_embd.weight": 3 * matrix(VOCABULARY, c.hidden)}
        self._tensors["output_norm.weight"] = np.ones(c.hidden, np.float32)
        for layer in range(c.layers):
            for name, shape in shapes.items():
                self._tensors[f"blk.{layer}.{name}.weight"] = matrix(*shape)
            for name in ("attn_norm", "ffn_norm"):
                self._tensors[f"blk.{layer}.{name}.weight"] = np.ones(c.hidden, np.float32)

    def tensor(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def layer_tensor(self, layer: int, name: str) -> np.ndarray:
        return self.tensor(f"blk.{layer}.{name}.weight")


class TinyTokenizer:
    """A token for every character, and one that ends a text."""

    end_id = VOCABULARY - 1

    def encode(self, text: str) -> list[int]:
        return [ord(character) % (VOCABULARY - 1) for character in text]

    def encode_chat(self, user: str) -> list[int]:
        return self.encode(f"{user}\n")

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + token % 26) for token in ids)


def set_up(
    ranks: int,
    broken_expert: tuple[int, int] | None = None,
    quant: str | None = None,
    form: demo.Form = demo.COLOCATED,
) -> demo.Setup:
    """What demo.set_up makes of the real model."""
    model, tokenizer = TinyModel(), TinyTokenizer()
    folder = prepare.find_or_prepare(model, tokenizer, EXPERTS, Path.cwd(), lambda done, total: None)
    options = demo.Options(ranks, EXPERTS, TOPK, Path("unused"), Path.cwd(), 16, broken_expert, quant, form)
    return demo.Setup(options, model, tokenizer, folder, Truth(model, prepare.load(folder)))


def form_of(text: str) -> demo.Form:
    """Of the command line."""
    if text in ("colocated", "rebalance"):
        return demo.Form(rebalance=text == "rebalance")
    attention, routing = text.split(":")
    return demo.Form(attention=int(attention), routing=routing)


def serve(ranks: str, broken: str, quant: str, form: str) -> bool:
    """Whether all checks passed."""
    expert = None if broken == "none" else tuple(int(part) for part in broken.split(":"))
    setup = set_up(int(ranks), expert, None if quant == "none" else quant, form_of(form))
    longer = MOVING_LONGER if form == "rebalance" else 1
    prompts = [(longer * limit, text) for limit, text in PROMPTS]
    answers, requests, summary = demo.serve(setup, prompts)
    demo.show_report(setup, summary)
    checks = demo.check(setup, requests, answers, summary)
    assert all(len(answer.tokens) <= limit for answer, (limit, _) in zip(answers, prompts, strict=True))
    of_form = {"colocated": 2 * len({1, 2, 4, int(ranks)}), "rebalance": 5}.get(form, 6)
    of_quant = 0 if quant == "none" else 3 + (form != "colocated")
    assert len(checks) == 2 + of_form + of_quant, checks
    return all(check.ok for check in checks)


def same_perplexity() -> bool:
    """Also where the logits come in several blocks."""
    setup = set_up(1)
    tokens = setup.tokenizer.encode(demo.PARAGRAPH.read_text())[:200]
    logits = np.concatenate(list(setup.truth.dense_logits(tokens))).astype(np.float64)
    assert len(logits) == 200
    surprises = [-logits[i, tokens[i + 1]] + np.log(np.exp(logits[i]).sum()) for i in range(199)]
    found = perplexity(setup.truth.dense_logits(tokens), tokens)
    print(found, np.exp(np.mean(surprises)))
    return bool(np.isclose(found, np.exp(np.mean(surprises)), rtol=1e-5))


if __name__ == "__main__":
    right = same_perplexity() if sys.argv[1] == "perplexity" else serve(*sys.argv[2:])
    sys.exit(0 if right else 1)
