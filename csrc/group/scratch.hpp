// The scratch memory of a communicator, through which its collectives pass data (collective/): a ring in which every
// round of a collective takes the next piece. Used by the communicator, which owns it, and by collective/exchange.
#pragma once

#include <cstdint>

#include "memory/high_water.hpp"

namespace xccl {

// The most that a rank stages in one round of a collective.
constexpr uint64_t scratch_round_bytes = uint64_t{4} << 20;
// Beside one round's piece, wherever it lies, there is always room for another's.
constexpr uint64_t scratch_bytes = 3 * scratch_round_bytes;
// What collectives of a few KiB use of it.
constexpr uint64_t scratch_small_bytes = page_granule;

class Scratch {
 public:
  Scratch() = default;
  Scratch(Provider& provider, int members)
      : region_(provider.allocate(scratch_bytes)),
        memory_(provider, region_, 0, scratch_bytes),
        spread_((uint64_t{8} << 20) / static_cast<uint64_t>(members)) {}

  const Region& region() const { return region_; }
  std::byte* at(uint64_t offset) const { return region_.base + offset; }

  // Room for what a round gives to others, at most scratch_round_bytes; returns its offset. It is never where the
  // round before has put its own: others may still be pulling that. OutOfMemory changes nothing.
  uint64_t take(uint64_t bytes);

 private:
  Region region_;
  HighWater memory_;
  uint64_t spread_ = 0;
  uint64_t first_ = 0, last_ = 0;  // of the round before
};

}  // namespace xccl
