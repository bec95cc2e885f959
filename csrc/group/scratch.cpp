#include "group/scratch.hpp"

#include <algorithm>

#include "memory/control_layout.hpp"

namespace xccl {

uint64_t Scratch::take(uint64_t bytes) {
  if (bytes == 0) return 0;
  bytes = round_up(bytes, cache_line);
  // Lines that a peer has just read are slow to write again while its cache holds them. So larger rounds wander
  // through more memory than that, as far as the memory of all ranks together stays in the cache that they share.
  const uint64_t wander = std::max({scratch_small_bytes, 3 * bytes, std::min(32 * bytes, spread_)});
  uint64_t start = last_;
  if (start + bytes > wander) start = 0;
  if (start < last_ && start + bytes > first_) start = last_;  // then first_ < bytes, and so this fits
  memory_.require(std::max(wander, start + bytes));
  first_ = start;
  last_ = start + bytes;
  return start;
}

}  // namespace xccl
