// The lines that a communicator has in the control segment of every member, one block, cut alike everywhere:
//
//   seat      doorbell, state, how far it has come in barriers   written by the owner of the segment; the doorbell rung
//             by anybody
//   failure   why the member failed   written once by the owner
//   survivors how far it has come in shrinking, its part of the new communicator, and what it has decided
//             written by the owner, read by the others (group/shrink.cpp)
//   barrier   32 words, a line each  one writer each (collective/barrier.cpp)
//   board     records, progress      sync/board.hpp
//   annex     of the layer above     p2p/channel_layout.hpp
#pragma once

#include <cstdint>

#include "memory/control_layout.hpp"
#include "memory/range_allocator.hpp"
#include "sync/board.hpp"

namespace xccl {

struct alignas(cache_line) Seat {
  Doorbell
      doorbell;  // of sub-communicators; the first communicator's members sleep at the segment's own bell
  uint32_t unused;
  std::atomic<uint64_t>
      state;  // RankState of the member in this communicator; release: all it published is before, and its failure
  // The latest barrier that the member has come to. A line of its own: others read the doorbell with every signal, and
  // this word only when somebody is late.
  alignas(cache_line) std::atomic<uint64_t> barrier;
};
static_assert(sizeof(Seat) == 2 * cache_line);

struct alignas(cache_line) FailureText {
  uint64_t length;
  char text[504];
};

// The attempts of a communicator to shrink are counted from 1, alike on all survivors. The three numbers only grow; each
// is stored last, with release, so that who sees it (acquire) sees what it speaks of. All words are atomic: who has left
// may still be reading what the others write for their next attempt.
struct alignas(cache_line) SurvivorWords {
  std::atomic<uint64_t> arrived;  // the attempt that the member has come to
  std::atomic<uint64_t>
      decided;  // the latest attempt for which it has decided who survives: `survivors`, below
  std::atomic<uint64_t> joined;  // the latest attempt for which the card is here
  std::atomic<uint64_t>
      card[5];  // its block and scratch in the new communicator, the next object, the oldest open
};
static_assert(sizeof(SurvivorWords) == cache_line);
namespace survivor_card {
enum Word : uint64_t { block, scratch0, scratch1, next_object, oldest_open };
}
// Behind it: a bit for every member, in words of 64.
constexpr uint64_t survivor_bits_words(int members) { return (static_cast<uint64_t>(members) + 63) / 64; }

constexpr int most_barrier_rounds = 32;  // 2^32 ranks

struct CommunicatorLayout {
  uint64_t failure, survivors, barrier, board, annex, bytes;  // offsets in the block; the seat is at 0

  CommunicatorLayout(int members, uint64_t annex_bytes)
      : failure(sizeof(Seat)),
        survivors(failure + sizeof(FailureText)),
        barrier(round_up(survivors + sizeof(SurvivorWords) + 8 * survivor_bits_words(members), cache_line)),
        board(barrier + most_barrier_rounds * cache_line),
        annex(board + Board::bytes(members)),
        bytes(annex + annex_bytes) {}
};

}  // namespace xccl
