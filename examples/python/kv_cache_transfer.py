"""Hands the KV cache of prompts from a prefill rank to a decode rank, layer by layer, with back-pressure.

    python -m xccl run -n 2 examples/python/kv_cache_transfer.py

The prefill rank sends each layer as soon as it is computed and goes on with the next; its arrays lie in the
application area, so the decode rank pulls them without a further copy. The decode rank has room for few prompts: it
posts receives only for those, so a prompt that finds no room waits at the prefill rank.
(The roles are those of xDeepServe, arXiv:2508.02520.)
"""

import numpy as np

import xccl

PROMPTS, LAYERS, TOKENS, WIDTH = 6, 8, 64, 256
ROOM = 2  # prompts whose cache fits on the decode rank at a time


def tag(prompt: int, layer: int) -> int:
    """Tells messages apart, whatever the order in which they are asked for."""
    return prompt * LAYERS + layer


def compute_layer(prompt: int, layer: int, out: np.ndarray) -> None:
    """Stands for attention: values that the other side can check."""
    out[...] = prompt + layer / 16


def prefill(comm: xccl.Communicator) -> None:
    """Computes and sends; an array is used again only when the message that reads it has gone."""
    caches = [[comm.empty((TOKENS, WIDTH), "bfloat16") for _ in range(LAYERS)] for _ in range(ROOM)]
    under_way: list[list[xccl.Request]] = [[] for _ in range(ROOM)]
    for prompt in range(PROMPTS):
        turn = prompt % ROOM
        for request in under_way[turn]:
            request.wait()  # here the decode rank holds this one back
        under_way[turn] = []
        for layer, cache in enumerate(caches[turn]):
            compute_layer(prompt, layer, cache)
            under_way[turn].append(comm.isend(cache, dst=1, tag=tag(prompt, layer)))
    for requests in under_way:
        for request in requests:
            request.wait()


def decode(comm: xccl.Communicator) -> int:
    """Asks for as many prompts as it has room for; each that is complete makes room for the next."""
    blocks = [np.empty((LAYERS, TOKENS, WIDTH), comm.empty(0, "bfloat16").dtype) for _ in range(ROOM)]

    def ask_for(prompt: int) -> list[xccl.Request]:
        block = blocks[prompt % ROOM]
        return [comm.irecv(block[layer], src=0, tag=tag(prompt, layer)) for layer in range(LAYERS)]

    asked = {prompt: ask_for(prompt) for prompt in range(min(ROOM, PROMPTS))}
    received = 0
    for prompt in range(PROMPTS):
        for request in asked.pop(prompt):
            received += request.wait().nbytes
        for layer in range(LAYERS):
            assert (blocks[prompt % ROOM][layer].astype(np.float32) == prompt + layer / 16).all()
        if prompt + ROOM < PROMPTS:
            asked[prompt + ROOM] = ask_for(prompt + ROOM)
    return received


with xccl.init() as comm:
    if comm.size != 2:
        raise SystemExit("this example is for two ranks: python -m xccl run -n 2 kv_cache_transfer.py")
    if comm.rank == 0:
        prefill(comm)
    else:
        nbytes = decode(comm)
        print(
            f"{PROMPTS} prompts, {LAYERS} layers each: {nbytes / 2**20:.1f} MiB of cache arrived and are right"
        )
