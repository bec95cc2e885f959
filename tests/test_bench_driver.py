"""The driver of the benchmarks in bench/: what it compares, and that a competitor that goes wrong is told and ended."""

from __future__ import annotations

import os

import pytest
from driver.compare import tables
from driver.group import Failed, Group
from driver.interleave import Effort, Measured, Sample, Stage, measure
from driver.launch import Team
from driver.leftovers import Leftovers
from driver.question import FLOOR, OURS, PEER, Case, Competitor
from driver.regime import regime_between
from driver.write import duration
from parts.moe_work import Work
from ranks import state_of, wait_until

CASE = Case("case", 2, ("pass",))
US = Competitor("us", OURS, Team("us"))
PEERS = [Competitor("slow", PEER, Team("slow")), Competitor("fast", PEER, Team("fast"))]
GROUND = Competitor("ground", FLOOR, Team("ground"))
EVERYBODY = [US, *PEERS, GROUND]

NEAR, FAR = (100.0, 110.0), (400.0, 450.0)
MOE = {"tokens": 4, "hidden": 64, "experts": 8, "topk": 4}


def sample(who: Competitor, seconds: float, trips: tuple[float, float] = NEAR) -> Sample:
    return Sample(who.name, "pass", seconds, 1, trips)


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        (100, 120, "near"),
        (400, 300, "far"),
        (50, 55, "same core"),
        (100, 400, "moved"),
        (50, 100, "moved"),
        (-1, -1, "one core"),
    ],
)
def test_a_sample_belongs_to_a_regime_only_if_it_was_the_same_before_and_after(before, after, name):
    assert regime_between(before, after) == name


def test_ratios_are_to_the_fastest_peer_and_floor_of_the_regime_with_most_samples():
    found = Measured(CASE)
    found.samples = [
        *(sample(US, seconds) for seconds in (1.0, 3.0, 2.0)),
        *(sample(PEERS[0], 8.0) for _ in range(3)),
        *(sample(PEERS[1], 4.0) for _ in range(3)),
        *(sample(GROUND, 1.0) for _ in range(3)),
        *(sample(one, 0.001, FAR) for one in EVERYBODY),
        *(sample(one, 0.001, (100.0, 400.0)) for one in EVERYBODY * 9),
    ]
    (table,) = tables(found, EVERYBODY)
    ours = table.rows[0]
    assert (table.regime, ours.samples, ours.median, ours.best) == ("near", 3, 2.0, 1.0)
    assert table.regimes == {"near": 12, "far": 4, "moved": 36}
    assert (ours.to_best_peer, ours.to_floor) == (0.5, 2.0)
    assert table.best_peer is table.rows[2]


def test_who_is_missing_is_a_row_with_the_reason():
    found = Measured(CASE, [sample(US, 1.0)], {"fast": "not installed"})
    rows = {row.competitor.name: row for row in tables(found, EVERYBODY)[0].rows}
    assert rows["fast"].why_absent == "not installed"
    assert rows["slow"].why_absent == "no sample in regime 'near'"
    assert rows["us"].to_best_peer is None


def test_a_part_that_cannot_start_says_why():
    with pytest.raises(Failed, match=r"No module named 'parts\.nothing'"):
        Group(Team("nothing"), 2)


def test_a_rank_that_dies_ends_the_group_and_not_the_others():
    good, bad = (Competitor(name, OURS, Team("moe_xccl", settings=((name, "1"),))) for name in ("A", "B"))
    stage, case = Stage(), Case("small", 2, ("dispatch", "combine"), MOE)
    before = children()
    turns = 0

    def say(line: str) -> None:
        nonlocal turns
        if "turn" in line:
            turns += 1
            if turns == 2:
                os.kill(stage.group(bad.team, 2).ranks[1].hello["pid"], 9)

    found = measure(case, [good, bad], stage, Effort(3, 0.001), say)
    assert "a rank has ended" in found.absent["B"]
    assert found.failed == {"B"}
    assert {one.competitor for one in found.samples} == {"A"}
    assert len(found.samples) == 2 * 3
    stage.clear()
    assert children() == before


def test_idle_groups_stand_still():
    stage = Stage()
    group = stage.group(Team("moe_xccl"), 2)
    try:
        pids = [rank.hello["pid"] for rank in group.ranks]
        wait_until(lambda: {state_of(pid) for pid in pids} == {"T"}, "both ranks stand still")
        group.go_on()
        group.ask(do="case", case=MOE)
        assert [told["wrong"] for told in run_once(group)] == [None, None]
    finally:
        stage.clear()


def run_once(group: Group) -> list[dict[str, object]]:
    group.ask(do="run", variant="private", iterations=1, seed=1)
    return group.ask(do="check")


def test_a_wrong_row_is_seen():
    work = Work(0, 2, **MOE)
    y = work.x.copy()
    assert work.wrong(y) is None
    y[2, 5] ^= 1
    assert work.wrong(y) == "combine: 1 of 4 rows differ, the first is 2"
    assert "shape" in str(work.wrong(y[:3]))


def test_routing_is_new_in_every_iteration_and_the_same_for_everybody():
    here, there = Work(0, 2, **MOE), Work(1, 2, **MOE)
    assert (here.routing(7, 1) == there.routing(7, 1)).all()
    assert (here.routing(7, 1) != here.routing(8, 1)).any()
    assert here.rows_here(7) + there.rows_here(7) == 2 * MOE["tokens"] * MOE["topk"]


def test_what_peers_leave_in_shared_memory_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "iox2_of_somebody").touch()
    leftovers = Leftovers(tmp_path)
    (tmp_path / "iox2_of_a_peer").touch()
    (tmp_path / "a_program's_own").touch()
    leftovers.remove()
    assert {path.name for path in tmp_path.iterdir()} == {"iox2_of_somebody", "a_program's_own"}


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as listing:
        return {int(pid) for pid in listing.read().split()}


@pytest.mark.parametrize(("seconds", "text"), [(1.5e-8, "15 ns"), (0.0123, "12.3 ms"), (123.4, "123 s")])
def test_durations_have_three_figures(seconds, text):
    assert duration(seconds) == text
