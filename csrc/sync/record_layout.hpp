// A record: one cache line in the reader's control segment, written by one peer.
//
//   byte 0    sequence number   stored last, seq_cst: publishes the payload and is step C of doorbell.hpp
//        8    payload           seven words; whose meaning belongs to the operation that owns the board
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "memory/control_layout.hpp"

namespace xccl {

using Payload = std::array<uint64_t, 7>;

struct alignas(cache_line) Record {
  std::atomic<uint64_t> seq;  // 0: never written
  Payload payload;
};

static_assert(sizeof(Record) == cache_line && offsetof(Record, payload) == 8);

// Records per pair of ranks, used in turn. Two are enough when every call waits for a record of every rank: a
// rank that writes record n + 2 has read n + 1 from everybody, and who wrote n + 1 had read every n.
constexpr uint64_t record_depth = 2;

}  // namespace xccl
