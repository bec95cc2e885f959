"""Attention and experts on different ranks: the bits of ranks that have both, whatever the numbers and the routing."""

from __future__ import annotations

import threading

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from ranks import error_of
from truth import Shape, combined, random_batch, same_bits, scale

import xccl
from xccl.disaggregated import Cost
from xccl.disaggregated import Shape as CostShape

SHAPE = Shape(num_experts=7, hidden=24, max_tokens=6, topk=3)
ROUTINGS = ["direct", "trampoline"]
LAYERS = 5


def arguments(shape):
    return (shape.num_experts, shape.hidden, shape.max_tokens, shape.topk)


def batch_of(rank, layer, shape=SHAPE):
    """0 to max_tokens tokens, also none."""
    rng = np.random.default_rng(100 * rank + layer)
    return random_batch(rng, shape, int(rng.integers(0, shape.max_tokens + 1)))


def weigh(batch, experts, layer):
    """The experts of truth.scale."""
    assert batch.tag == layer
    for i, expert in enumerate(experts):
        rows = batch.expert(i)
        rows[:] = scale(expert, rows)
    return batch.x


def attend(comm, de, layers):
    """Two micro-batches in flight. What came back of each."""
    sums = []
    for layer in layers:
        batch = batch_of(comm.rank, layer)
        de.a2e(batch.x, batch.topk_idx, batch.topk_weights, tag=layer)
        if layer % 2:
            sums += [np.array(de.e2a()), np.array(de.e2a())]
    if len(layers) % 2:
        sums.append(np.array(de.e2a()))
    de.end()
    return sums


def serve_layers(de):
    """Layers may come in any order of the micro-batches, but each as often as there are domains."""
    seen = []

    def compute(batch):
        seen.append(batch.tag)
        return weigh(batch, de.local_experts, batch.tag)

    assert de.serve(compute) == len(seen)
    return sorted(seen)


def a_few_layers(comm, attention, routing, options):
    with xccl.DisaggregatedExperts(comm, attention, *arguments(SHAPE), routing=routing, **options) as de:
        return serve_layers(de) if de.is_expert else attend(comm, de, range(LAYERS))


def check_layers(results, attention, domains=1):
    for rank, sums in enumerate(results[:attention]):
        for layer, y in enumerate(sums):
            same_bits(y, combined(batch_of(rank, layer), SHAPE, scale))
    for seen in results[attention:]:
        assert seen == sorted(list(range(LAYERS)) * domains)


NUMBERS = [(1, 1), (3, 5), (7, 2), (1, 4), (5, 3), (2, 2)]


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("attention", "experts"), NUMBERS)
def test_any_numbers_have_the_bits_of_the_colocated_form(threads, attention, experts, routing):
    # The truth is what test_dispatch_combine.py holds the colocated form to, bit for bit.
    check_layers(threads.run(a_few_layers, attention + experts, attention, routing, {}), attention)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_processes_direct_and_staged(ranks, routing):
    check_layers(ranks.run(a_few_layers, 5, 2, routing, {}), 2)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("quant", ["int8", "fp8_e4m3"])
def test_quantised_rows_have_the_bits_of_the_colocated_form(threads, routing, quant):
    options = {"dispatch_quant": quant, "combine_quant": quant}
    apart = threads.run(quantised_layer, 5, options, routing)[:2]
    together = threads.run(quantised_layer, 2, options, None)
    for mine, theirs in zip(apart, together, strict=True):
        same_bits(mine, theirs)


def dequantise(x, scales):
    """Rows of bfloat16 of codes."""
    wide = scales[:, None] if scales.ndim == 1 else np.repeat(scales, 128, 1)[:, : x.shape[1]]
    return (x.astype(np.float32) * wide).astype("bfloat16")


def quantised_layer(comm, options, routing):
    """On 2 attention and 3 expert ranks, or with routing None on 2 ranks that have both."""
    batch = random_batch(np.random.default_rng(comm.rank), SHAPE, 5)
    given = batch.x, batch.topk_idx, batch.topk_weights
    if routing is None:
        with xccl.ExpertParallel(comm, *arguments(SHAPE), **options) as ep, ep.dispatch(*given) as d:
            return np.array(ep.combine(dequantise(d.x, d.scales), d))
    with xccl.DisaggregatedExperts(comm, 2, *arguments(SHAPE), routing=routing, **options) as de:
        if de.is_expert:
            de.serve(lambda b: dequantise(b.x, b.scales))
            return None
        de.a2e(*given)
        y = np.array(de.e2a())
        de.end()
        return y


@pytest.mark.parametrize("routing", ROUTINGS)
def test_domains_are_served_in_turn_and_go_on_independently(threads, routing):
    options = {"domains": [[0, 2], [1]], "micro_batches": 2}
    check_layers(threads.run(a_few_layers, 5, 3, routing, options), 3, domains=2)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_experts_lie_where_the_placement_says(threads, routing):
    placement = [[6, 0], [], [1, 2, 3, 4, 5, 0]]
    check_layers(threads.run(a_few_layers, 5, 2, routing, {"placement": placement}), 2)


# --- Own loop, overlap ---------------------------------------------------------------------------------------------


def loop_of_its_own(comm, routing):
    with xccl.DisaggregatedExperts(comm, 2, *arguments(SHAPE), routing=routing) as de:
        if not de.is_expert:
            return attend(comm, de, range(LAYERS))
        seen = []
        while (batch := de.receive()) is not None:
            seen.append(batch.tag)
            out = batch.output_buffer()
            out[:] = weigh(batch, de.local_experts, batch.tag)
            de.send(batch, out)
        return seen


@pytest.mark.parametrize("routing", ROUTINGS)
def test_receive_and_send_make_a_loop(threads, routing):
    check_layers(threads.run(loop_of_its_own, 4, routing), 2)


def the_second_comes_while_the_first_is_computed(comm, routing, second_is_here):
    with xccl.DisaggregatedExperts(comm, 1, *arguments(SHAPE), routing=routing, micro_batches=2) as de:
        if de.is_expert:
            received = []

            def compute(batch):
                # Ends only when the next micro-batch has been received in the meantime, by another thread.
                if batch.tag == 0:
                    assert second_is_here.wait(60)
                return batch.x

            for lane in de._lanes:
                lane._batch = noticing(lane._batch, received, second_is_here)
            return de.serve(compute)
        for layer in range(2):
            batch = batch_of(3, layer)
            de.a2e(batch.x, batch.topk_idx, batch.topk_weights, tag=layer)
        sums = [np.array(de.e2a()), np.array(de.e2a())]
        de.end()
        return sums


def noticing(made, received, both):
    def notice(d):
        received.append(d.tag)
        if len(received) == 2:
            both.set()
        return made(d)

    return notice


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_micro_batch_is_received_while_another_is_computed(threads, routing):
    sums, served = threads.run(the_second_comes_while_the_first_is_computed, 2, routing, threading.Event())
    assert served == 2
    for layer, y in enumerate(sums):
        same_bits(y, combined(batch_of(3, layer), SHAPE, lambda expert, rows: rows))


def the_first_goes_back_while_the_second_is_computed(comm, routing, first_is_computed, first_is_back):
    with xccl.DisaggregatedExperts(comm, 1, *arguments(SHAPE), routing=routing, micro_batches=2) as de:
        if de.is_expert:

            def compute(batch):
                # Ends only when attention has the sums of the first, which another thread has sent in the meantime.
                if batch.tag == 1:
                    assert first_is_back.wait(60)
                else:
                    first_is_computed.release()
                return batch.x

            return de.serve(compute)
        for layer in range(2):
            batch = batch_of(3, layer)
            de.a2e(batch.x, batch.topk_idx, batch.topk_weights, tag=layer)
            if layer == 0:  # else the second may come first on one of the experts
                assert all(first_is_computed.acquire(timeout=60) for _ in range(de.experts))
        de.e2a()
        first_is_back.set()
        de.e2a()
        de.end()
        return None


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_micro_batch_goes_back_while_another_is_computed(threads, routing):
    found = threads.run(
        the_first_goes_back_while_the_second_is_computed,
        3,
        routing,
        threading.Semaphore(0),
        threading.Event(),
    )
    assert found == [None, 2, 2]


def in_which_thread(comm, routing):
    with xccl.DisaggregatedExperts(comm, 1, *arguments(SHAPE), routing=routing) as de:
        if not de.is_expert:
            return attend(comm, de, range(LAYERS))
        threads = set()

        def compute(batch):
            threads.add(threading.get_ident())
            return batch.x

        de.serve(compute)
        return threads == {threading.get_ident()}


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_thread_that_serves_is_the_one_that_computes(threads, routing):
    assert threads.run(in_which_thread, 3, routing)[1:] == [True, True]


def in_turn(comm, routing):
    """Two domains have sent two micro-batches each before the first is received."""
    with xccl.DisaggregatedExperts(comm, 2, *arguments(SHAPE), routing=routing, domains=[[0], [1]]) as de:
        if not de.is_expert:
            for layer in range(2):
                batch = batch_of(comm.rank, layer)
                de.a2e(batch.x, batch.topk_idx, batch.topk_weights, tag=layer)
        comm.barrier()
        if not de.is_expert:
            de.e2a()
            de.e2a()
            return de.end()
        seen = []
        while (batch := de.receive()) is not None:
            seen.append((batch.tag, batch.domain))
            de.send(batch, batch.x)
        return seen


@pytest.mark.parametrize("routing", ROUTINGS)
def test_domains_that_wait_are_taken_in_turn(threads, routing):
    for seen in threads.run(in_turn, 4, routing)[2:]:
        assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


# --- Counting ------------------------------------------------------------------------------------------------------


def count_one(comm, attention, routing):
    with xccl.DisaggregatedExperts(
        comm, attention, *arguments(SHAPE), routing=routing, micro_batches=1
    ) as de:
        if de.is_expert:
            batch = de.receive()
            de.send(batch, batch.x)
        else:
            batch = batch_of(comm.rank, 0)
            de.a2e(batch.x, batch.topk_idx, batch.topk_weights)
            de.e2a()
        return de.counters(), de.cost


def check_counts(found, attention):
    for rank, (counters, cost) in enumerate(found):
        load = (
            cost.attention(cost.routing) if rank < attention else cost.expert(cost.routing, rank - attention)
        )
        assert (counters.records, counters.fan_out) == (load.records, load.fan_out)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("attention", "experts"), NUMBERS)
def test_records_are_those_of_the_cost_model(threads, attention, experts, routing):
    found = threads.run(count_one, attention + experts, attention, routing)
    check_counts(found, attention)
    assert {counters.fan_out for counters, _ in found[:attention]} == {
        1 if routing == "trampoline" else experts
    }
    assert {counters.hops for counters, _ in found} == {2 if routing == "trampoline" and experts > 1 else 1}


def count_of_domains(comm, domains, routing):
    """One micro-batch of each domain, each with the records that the model says of its own size."""
    with xccl.DisaggregatedExperts(
        comm, 4, *arguments(SHAPE), routing=routing, micro_batches=1, domains=domains
    ) as de:
        costs = [de.cost_of(domain) for domain in range(len(domains))]
        if de.is_expert:
            batches = [de.receive() for _ in domains]
            for batch in batches:
                de.send(batch, batch.x)
            expected = sum(cost.expert(routing, comm.rank - 4).records for cost in costs)
        else:
            batch = batch_of(comm.rank, 0)
            de.a2e(batch.x, batch.topk_idx, batch.topk_weights)
            de.e2a()
            expected = next(
                cost.attention(routing).records
                for cost, ranks in zip(costs, domains, strict=True)
                if comm.rank in ranks
            )
        return de.counters().records, expected


@pytest.mark.parametrize("routing", ROUTINGS)
def test_records_of_domains_of_different_sizes_are_those_of_the_cost_model(threads, routing):
    for counted, expected in threads.run(count_of_domains, 7, [[3], [0, 1, 2]], routing):
        assert counted == expected


def one_of_many(comm, attention, routing):
    shape = Shape(num_experts=comm.size - attention, hidden=64, max_tokens=4, topk=8)
    with xccl.DisaggregatedExperts(
        comm, attention, *arguments(shape), routing=routing, micro_batches=1
    ) as de:
        if de.is_expert:
            batch = de.receive()
            de.send(batch, batch.x)
            return de.counters(), de.cost
        batch = random_batch(np.random.default_rng(comm.rank), shape, 4)
        de.a2e(batch.x, batch.topk_idx, batch.topk_weights)
        same_bits(de.e2a(), combined(batch, shape, lambda expert, rows: rows))
        return de.counters(), de.cost


@pytest.mark.timeout(300)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_papers_numbers_of_ranks(routing):
    found = xccl.spawn(one_of_many, 160 + 288, args=(160, routing), provider="local")
    check_counts(found, 160)
    assert {counters.fan_out for counters, _ in found[:160]} == {1 if routing == "trampoline" else 288}


def test_the_cost_model_picks_and_says_why():
    few_large = xccl.disaggregated.cost.choose(CostShape(2, 2, 4096, 7168, 8), "auto")
    many_small = xccl.disaggregated.cost.choose(CostShape(160, 288, 4, 64, 8), "auto")
    assert (few_large.routing, many_small.routing) == ("direct", "trampoline")
    for cost in (few_large, many_small):
        assert cost.microseconds(cost.routing) == min(map(cost.microseconds, ROUTINGS))
        assert f"{cost.routing}: the cheaper one" in str(cost)
    assert "as was asked for" in str(Cost(few_large.shape, "trampoline", True))


@hypothesis.given(st.integers(1, 12), st.integers(1, 12))
def test_every_attention_rank_has_one_trampoline(attention, experts):
    cost = Cost(CostShape(attention, experts, 4, 64, 2), "trampoline", True)
    others = experts - 1
    assert sum(cost.expert("trampoline", rank).fan_out - others for rank in range(experts)) == attention


# --- What is wrong -------------------------------------------------------------------------------------------------


def misuse(comm, routing):
    found = {}
    shape = arguments(SHAPE)
    wrong = {
        "attention=0": lambda: xccl.DisaggregatedExperts(comm, 0, *shape),
        "attention=3: expected 1 to 2": lambda: xccl.DisaggregatedExperts(comm, 3, *shape),
        "routing='fast'": lambda: xccl.DisaggregatedExperts(comm, 1, *shape, routing="fast"),
        "micro_batches=0": lambda: xccl.DisaggregatedExperts(comm, 1, *shape, micro_batches=0),
        "domains=[[0, 0]]": lambda: xccl.DisaggregatedExperts(comm, 1, *shape, domains=[[0, 0]]),
        "placement has slots for 1 ranks: expected 2": lambda: xccl.DisaggregatedExperts(
            comm, 1, *shape, placement=[[0]]
        ),
        "comm is a int": lambda: xccl.DisaggregatedExperts(3, 1, *shape),
    }
    found |= {text: error_of(call) for text, call in wrong.items()}
    with xccl.DisaggregatedExperts(comm, 1, *shape, routing=routing, micro_batches=1) as de:
        if de.is_expert:
            found["a2e is for attention ranks"] = error_of(de.a2e, 0, 0, 0)
            found["e2a is for attention ranks"] = error_of(de.e2a)
            found["batch was not received here"] = error_of(de.send, 3, 4)
            de.serve(lambda batch: batch.x)
        else:
            batch = batch_of(0, 3)
            good = batch.x, batch.topk_idx, batch.topk_weights
            found |= {
                "serve is for expert ranks": error_of(de.serve, print),
                "receive is for expert ranks": error_of(de.receive),
                "no micro-batch is in flight": error_of(de.e2a),
                "x has dtype float32": error_of(de.a2e, batch.x.astype(np.float32), *good[1:]),
                "expected (n, 24)": error_of(de.a2e, batch.x[:, 1:].copy(), *good[1:]),
                "expected 0 to max_tokens=6": error_of(
                    de.a2e, *(np.repeat(a, 7, 0)[:7] for a in map(np.asarray, good))
                ),
                "topk_idx has shape": error_of(de.a2e, batch.x, batch.topk_idx[1:], batch.topk_weights),
                "topk_weights has shape": error_of(de.a2e, batch.x, batch.topk_idx, batch.topk_weights[1:]),
                "names expert 7 in slot 0": error_of(
                    de.a2e, batch.x, np.full_like(batch.topk_idx, 7), batch.topk_weights
                ),
                "tag=-1": error_of(de.a2e, *good, tag=-1),
                "tag=2147483647": error_of(de.a2e, *good, tag=2**31 - 1),
            }
            de.a2e(*good)
            found["as many as micro_batches; call e2a first"] = error_of(de.a2e, *good)
            found["1 micro-batches are in flight"] = error_of(de.end)
            found["out has shape"] = error_of(de.e2a, out=np.empty((9, 24), batch.x.dtype))
            found["out is a list"] = error_of(de.e2a, out=[0])
            same_bits(de.e2a(), combined(batch, SHAPE, lambda expert, rows: rows))
            de.end()
            found["end() has been called"] = error_of(de.a2e, *good)
    assert de.closed
    assert (
        type(error_of(de.serve if de.is_expert else de.e2a, *([print] if de.is_expert else [])))
        is xccl.Closed
    )
    return found


@pytest.mark.parametrize("routing", ROUTINGS)
def test_what_is_wrong_is_named_and_nothing_is_lost(either_provider, routing):
    for found in either_provider.run(misuse, 3, routing):
        for text, error in found.items():
            assert type(error) is xccl.InvalidArgument, (text, error)
            assert text in str(error)


def tags_differ(comm, routing):
    with xccl.DisaggregatedExperts(comm, 2, *arguments(SHAPE), routing=routing) as de:
        if de.is_expert:
            return error_of(de.serve, lambda batch: batch.x)
        batch = batch_of(comm.rank, 1)
        de.a2e(batch.x, batch.topk_idx, batch.topk_weights, tag=comm.rank)
        return error_of(de.e2a)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("experts", [1, 2])
def test_attention_ranks_that_give_different_tags_are_told(threads, routing, experts):
    outcomes = threads.outcomes(tags_differ, 2 + experts, routing)
    errors = [outcome.value or outcome.error for outcome in outcomes]
    assert all(isinstance(error, (xccl.Mismatch, xccl.PeerFailed)) for error in errors), errors
    assert any(isinstance(error, xccl.Mismatch) and "tag" in str(error) for error in errors)


def an_expert_fails(comm, routing):
    with xccl.DisaggregatedExperts(comm, 2, *arguments(SHAPE), routing=routing) as de:
        if de.is_expert:

            def compute(batch):
                if comm.rank == 3:
                    raise LookupError("the cause")
                return batch.x

            de.serve(compute)
        else:
            batch = batch_of(comm.rank, 1)
            de.a2e(batch.x, batch.topk_idx, batch.topk_weights)
            de.e2a()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_what_the_experts_raise_reaches_everybody(either_provider, routing):
    outcomes = either_provider.outcomes(an_expert_fails, 4, routing)
    assert isinstance(outcomes[3].error, LookupError)
    for rank in (0, 1, 2):
        assert isinstance(outcomes[rank].error, xccl.PeerFailed), outcomes[rank]
        assert "LookupError: the cause" in str(outcomes[rank].error)
