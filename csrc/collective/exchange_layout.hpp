// What a record on a communicator's board says: the payload of its seven words, in every round of every collective.
// Written by exchange.cpp, read by it alone. (The record itself: sync/record_layout.hpp.)
//
//   word 0   call      which collective, of which elements, with which operation and root: the same on all ranks
//        1   size      of which size: the same on all ranks
//        2   rows      all_gather_v, all_to_all_v: how many the writer gives the reader in the whole call
//        3   rounds    in how many rounds the writer gives everything
//        4   where     this round's bytes lie at this offset of the writer's scratch memory; or, if it is `lent`, of
//        5,6 key       this region of the writer's, in which its own array lies
//        5   agreed    reduce_scatter_v: what `size` is the hash of lies there, in the scratch memory: elements of a row,
//                      rows of each rank
//     4..6   bytes     instead of the three: this round's bytes themselves, if they are few
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.hpp"

namespace xccl {

// The order is known to others: collectives are numbered in records.
enum class Collective : uint8_t {
  all_gather = 1,
  all_gather_v,
  all_to_all,
  all_to_all_v,
  broadcast,
  reduce_scatter,
  reduce_scatter_v,
  all_reduce,
  // all_gathers that the library itself needs, so that they cannot be taken for the user's
  expert_parallel,
  split
};

struct ExchangeCall {
  Collective collective;
  ElementType type{};  // of reductions
  ReduceOp op{};
  uint32_t root = 0;  // of a broadcast

  uint64_t packed() const {
    return static_cast<uint64_t>(collective) | static_cast<uint64_t>(type) << 8 |
           static_cast<uint64_t>(op) << 16 | static_cast<uint64_t>(root) << 32;
  }
  static ExchangeCall unpacked(uint64_t word) {
    return {static_cast<Collective>(word & 0xff), static_cast<ElementType>(word >> 8 & 0xff),
            static_cast<ReduceOp>(word >> 16 & 0xffff), static_cast<uint32_t>(word >> 32)};
  }
};

namespace exchange_record {
enum Word : size_t { call, size, rows, rounds, where, agreed, bytes = where, key = agreed };
constexpr uint64_t most_inline = 24;
constexpr uint64_t lent = uint64_t{1} << 63;
}  // namespace exchange_record

}  // namespace xccl
