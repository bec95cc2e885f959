// The lines that a communicator has in the control segment of every member, one block, cut alike everywhere:
//
//   seat      doorbell, state, how far it has come in barriers   written by the owner of the segment; the doorbell rung
//             by anybody
//   failure   why the member gave up   written once by the owner
//   barrier   32 words, a line each  one writer each (collective/barrier.cpp)
//   board     records, progress      sync/board.hpp
//   annex     of the layer above     p2p/channel_layout.hpp
#pragma once

#include <cstdint>

#include "memory/control_layout.hpp"
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

constexpr int most_barrier_rounds = 32;  // 2^32 ranks

struct CommunicatorLayout {
  uint64_t failure, barrier, board, annex, bytes;  // offsets in the block; the seat is at 0

  CommunicatorLayout(int members, uint64_t annex_bytes)
      : failure(sizeof(Seat)),
        barrier(failure + sizeof(FailureText)),
        board(barrier + most_barrier_rounds * cache_line),
        annex(board + Board::bytes(members)),
        bytes(annex + annex_bytes) {}
};

}  // namespace xccl
