// Copying memory that other cores read or have read: through the caches, or past them.
// Used by the collectives. Not here: copying between providers (memory/provider.hpp).
#pragma once

#include <cstdint>

namespace xccl {

// Leaves `to` in memory, not in the caches. For results larger than those; and where writing through them is slow.
// Visible to others before anything that this thread stores afterwards.
void copy_past_caches(void* to, const void* from, uint64_t bytes);

// The same for many copies: visible only once all of them have been finished together.
void stream_past_caches(void* to, const void* from, uint64_t bytes);
void finish_streams();

// The last level of cache, which cores near each other share.
uint64_t shared_cache_bytes();

// Copies by the way that costs less, which it learns from the clock. Lines that another core has read must be taken
// from its cache before they are written. That is fast within a group of cores that share a cache, and several times
// slower beyond (other groups, other sockets), where writing past the caches costs the same as ever. Where the ranks
// run may change at any time.
class LearningCopy {
 public:
  // Shorter copies go through the caches, untimed.
  explicit LearningCopy(uint64_t worth_choosing = 16 * 1024) : worth_choosing_(worth_choosing) {}

  void operator()(void* to, const void* from, uint64_t bytes);

 private:
  void timed(bool past, void* to, const void* from, uint64_t bytes);

  uint64_t worth_choosing_;
  double through_cost_ = 0, past_cost_ = 0;  // ns per byte, of late
  uint64_t copies_ = 0;
  bool past_ = false;
};

}  // namespace xccl
