// The scratch memory of a communicator, through which its collectives pass data (collective/): a ring in which every
// round of a collective takes the next piece. Used by the communicator, which owns it, and by collective/exchange.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/copy.hpp"
#include "memory/high_water.hpp"

namespace xccl {

// The most that a rank of so many writes for others in one round of a collective. Half a cache of a core, so that it is
// still there when it is read, and when the next round is written; with many ranks, enough for each.
constexpr uint64_t most_scratch_round_bytes = uint64_t{4} << 20;
constexpr uint64_t scratch_round_bytes(int ranks) {
  return std::clamp(static_cast<uint64_t>(ranks) * 16 * 1024, uint64_t{512} << 10, most_scratch_round_bytes);
}
// Beside one round's piece, wherever it lies, there is always room for another's.
constexpr uint64_t scratch_bytes = 3 * most_scratch_round_bytes;
// What collectives of a few KiB use of it.
constexpr uint64_t scratch_small_bytes = page_granule;

class Scratch {
 public:
  Scratch() = default;
  Scratch(Provider& provider, int members)
      : region_(provider.allocate(scratch_bytes)),
        memory_(provider, region_, 0, scratch_bytes),
        spread_((uint64_t{4} << 20) / static_cast<uint64_t>(members)) {}

  const Region& region() const { return region_; }
  std::byte* at(uint64_t offset) const { return region_.base + offset; }

  // Room for what a round gives to others, at most most_scratch_round_bytes; returns its offset. It is never where the
  // round before has put its own: others may still be pulling that. OutOfMemory changes nothing.
  uint64_t take(uint64_t bytes);
  // Writes there what others are to read.
  void write(uint64_t offset, const void* from, uint64_t bytes) { copy_(at(offset), from, bytes); }

 private:
  Region region_;
  HighWater memory_;
  uint64_t spread_ = 0;
  uint64_t first_ = 0, last_ = 0;  // of the round before
  LearningCopy copy_;
};

}  // namespace xccl
