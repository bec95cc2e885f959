"""The mutants: each is one line of the sources made wrong, and the test or the model that must notice.

`text` must be found in `file` exactly once; tests/test_mutants.py checks that for all of them in every test run. How
they are applied, built and judged: run.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NativeTest:
    """A program of tests/native, in a build of this preset. `says`: what its output then contains, "": it may hang."""

    name: str
    preset: str = "debug"
    says: str = ""


@dataclass(frozen=True)
class ModelVariant:
    """For what no test on this machine can see: a variant of a model (tests/models) that makes the same mistake.

    The model must name the function that `text` lies in, and spin must find the variant's fault.
    """

    model: str
    variant: str


@dataclass(frozen=True)
class Mutant:
    name: str
    wrong: str  # what is wrong, in a few words
    file: str
    text: str
    instead: str
    caught_by: NativeTest | ModelVariant


RACE = "data race"

MUTANTS = [
    Mutant(
        "no-second-look",
        "the sleeper does not look again before it sleeps",
        "csrc/memory/doorbell.hpp",
        "if (!ready()) futex_wait(&word_, who, timeout_ns);",
        "(void)ready, futex_wait(&word_, who, timeout_ns);",
        NativeTest("doorbell", says="CHECK(looks == 1)"),
    ),
    Mutant(
        "sleeps-between-pieces",
        "a wait does not see that bytes are moving, and sleeps between the pieces of a message",
        "csrc/sync/wait.cpp",
        "all != moved",
        "all < moved",
        NativeTest("wait", says="CHECK(sleeps_of(vigil, 3) <= 1)"),
    ),
    Mutant(
        "ahead-of-another",
        "what was copied ahead of one message's answer is streamed as the next one's",
        "csrc/p2p/channel.cpp",
        "if (std::exchange(ahead_of_, 0) == request.id)",
        "if (std::exchange(ahead_of_, 0))",
        NativeTest("point_to_point", says="CHECK(is_filled("),
    ),
    Mutant(
        "ahead-overwritten",
        "what was copied ahead is believed to be there still when another message has been streamed",
        "csrc/p2p/channel.cpp",
        "if (std::exchange(ahead_of_, 0) == request.id)",
        "if (ahead_of_ == request.id)",
        NativeTest("point_to_point", says="CHECK(is_filled("),
    ),
    Mutant(
        "withdrawal-released",
        "words of a channel are stored with release only, so that a later look may come before",
        "csrc/p2p/channel.cpp",
        "word->store(value, std::memory_order_seq_cst);",
        "word->store(value, std::memory_order_release);",
        ModelVariant("withdrawal", "WITHDRAWAL_RELEASE"),
    ),
    Mutant(
        "alarm-lowered-late",
        "the alarm is lowered by a relaxed exchange, so that the flags may be read before",
        "csrc/group/world.cpp",
        "fixed().bell.alarm.exchange(0, std::memory_order_seq_cst)",
        "fixed().bell.alarm.exchange(0, std::memory_order_relaxed)",
        ModelVariant("doorbell", "LOWERED_AFTER_FLAGS"),
    ),
    Mutant(
        "record-relaxed",
        "a record's number is stored relaxed: its payload may come later",
        "csrc/sync/board.cpp",
        "record.seq.store(seq, std::memory_order_seq_cst);",
        "record.seq.store(seq, std::memory_order_relaxed);",
        NativeTest("collectives", preset="tsan", says=RACE),
    ),
    Mutant(
        "progress-relaxed",
        "the progress word is stored relaxed: what it gives back may still be read",
        "csrc/sync/board.cpp",
        "progress_->store(seq + 1, std::memory_order_release);",
        "progress_->store(seq + 1, std::memory_order_relaxed);",
        NativeTest("expert_parallel", preset="tsan", says=RACE),
    ),
    Mutant(
        "deadline-removed",
        "a wait goes on after its deadline",
        "csrc/sync/wait.cpp",
        "    if (deadline.passed()) return ready(context);\n",
        "",
        NativeTest("communicator"),
    ),
    Mutant(
        "ring-one-more",
        "a sender takes one place more in the ring than there is",
        "csrc/p2p/channel.cpp",
        """  drained_there_ = words_->drained.load(std::memory_order_seq_cst);
  return posted_ - drained_there_ < layout_.ring_records;""",
        """  drained_there_ = words_->drained.load(std::memory_order_seq_cst);
  return posted_ - drained_there_ <= layout_.ring_records;""",
        NativeTest("point_to_point"),
    ),
    Mutant(
        "doubt-not-looked-at",
        "a receiver completes what it has pulled without looking whether the sender has wanted it back",
        "csrc/p2p/receiving.cpp",
        """  XCCL_TEST_POINT("p2p.done");
  if (from.flushed() && !from.in_doubt() && from.settling.empty()) return finish(request);""",
        """  XCCL_TEST_POINT("p2p.done");
  if (from.flushed() && from.settling.empty()) return finish(request);""",
        NativeTest("point_to_point", says="CHECK("),
    ),
    Mutant(
        "close-takes-all",
        "a message is lost when its sender closes, though its send had ended well",
        "csrc/p2p/receiving.cpp",
        "if (from.only_close_is_in_doubt()) {",
        "if (false) {",
        NativeTest("point_to_point", says="has closed its communicator"),
    ),
    Mutant(
        "length-not-checked",
        "a place that another rank's record names is read wherever it lies",
        "csrc/collective/exchange.cpp",
        "if (at > region->bytes || length > region->bytes - at)",
        "if (false)",
        NativeTest("collectives"),
    ),
    Mutant(
        "pull-not-awaited",
        "a round ends before what was pulled has arrived",
        "csrc/collective/exchange.cpp",
        "void Exchange::finish() {\n  quiet();\n",
        "void Exchange::finish() {\n",
        NativeTest("collectives", says="CHECK("),
    ),
    Mutant(
        "failure-kept-secret",
        "a rank that gives up does not tell the others",
        "csrc/group/communicator.cpp",
        "announce_failure(cause.what()",
        "(void)(cause.what()",
        NativeTest("communicator"),
    ),
    Mutant(
        "slot-reused-early",
        "memory that others pull from is written again one call early",
        "csrc/moe/expert_parallel.cpp",
        "if (!talks_with(member) || board_->passed(member, seq)) continue;",
        "if (!talks_with(member) || board_->passed(member, seq ? seq - 1 : 0)) continue;",
        NativeTest("expert_parallel", says="CHECK("),
    ),
    Mutant(
        "rounded-half-up",
        "a sum halfway between two bfloat16 numbers is not rounded to the even one",
        "csrc/kernels/element_body.hpp",
        "const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;",
        "const Word rounded = (bits + 0x8000u) >> 16;",
        NativeTest("kernels", says="CHECK("),
    ),
]
