// Copying memory that other cores read or have read: through the caches, or past them.
// Used by messages, collectives and dispatch. Not here: copying between providers (memory/provider.hpp).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace xccl {

// Leaves `to` in memory, not in the caches. For results larger than those; and where writing through them is slow.
// Visible to others before anything that this thread stores afterwards.
void copy_past_caches(void* to, const void* from, uint64_t bytes);

// What will be read next.
struct Ahead {
  const std::byte* from = nullptr;
  uint64_t bytes = 0;
};

// The same for many copies: visible only once all of them have been finished together. A hint: `ahead`, no more bytes
// than these, comes into the caches meanwhile.
void stream_past_caches(void* to, const void* from, uint64_t bytes, Ahead ahead = {});
void finish_streams();

// Copies by the way that costs less, which it learns from the clock. Lines that another core has read must be taken
// from its cache before they are written. That is fast within a group of cores that share a cache, and several times
// slower beyond (other groups, other sockets), where writing past the caches costs the same as ever. Where the ranks
// run may change at any time, so now and then the other way is tried again. Each way leaves memory in a state in which
// the other looks slow at first: a trial is therefore judged only when the memory has been gone through once.
class LearningCopy {
 public:
  // Shorter copies go through the caches, untimed.
  explicit LearningCopy(uint64_t worth_choosing = 16 * 1024) : worth_choosing_(worth_choosing) {}

  void operator()(void* to, const void* from, uint64_t bytes);

 private:
  enum class Phase { settling, judging, running };

  void next_phase();
  void decide();
  void enter(Phase phase, int64_t bytes);
  void judge(uint64_t bytes, uint64_t ns);
  float median_cost();

  uint64_t worth_choosing_;
  bool past_ = false;          // the way that was found better
  bool trying_other_ = false;  // not that one, just now
  Phase phase_ = Phase::settling;
  int64_t left_ = settled_after;   // bytes of this phase
  std::array<float, 64> costs_{};  // ns per byte: of the copies being judged
  size_t judged_ = 0;
  float cost_of_better_ = 0;
  uint64_t decided_ = 0;  // when

  static constexpr int64_t settled_after = 4 << 20, judged_over = 1 << 20;
  static constexpr int64_t running_unwatched = 1 << 20;         // before the clock is read again
  static constexpr uint64_t tried_again_after_ns = 50'000'000;  // a trial takes a hundredth of that
};

}  // namespace xccl
