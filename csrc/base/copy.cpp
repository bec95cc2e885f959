#include "base/copy.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/clock.hpp"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace xccl {

void stream_past_caches(void* to, const void* from, uint64_t bytes, [[maybe_unused]] Ahead ahead) {
#if defined(__x86_64__)
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  const uint64_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(out) % 64);
  std::memcpy(out, in, head);
  uint64_t at = head, due = 0;
  for (; at + 64 <= bytes; at += 64) {  // whole lines: a part of one would be read first
    // A line of the others every so many of these: all at once they would hold up the stores.
    if ((due += ahead.bytes) >= bytes) {
      due -= bytes;
      _mm_prefetch(reinterpret_cast<const char*>(ahead.from), _MM_HINT_T1);
      ahead.from += 64;
    }
    for (uint64_t i = at; i < at + 64; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
  }
  std::memcpy(out + at, in + at, bytes - at);
#else
  std::memcpy(to, from, bytes);
#endif
}

void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();  // such stores are ordered by nothing else
#endif
}

void copy_past_caches(void* to, const void* from, uint64_t bytes) {
  stream_past_caches(to, from, bytes);
  finish_streams();
}

namespace {
// Within a group of cores that share a cache, writing lines that another core has read costs up to 0.12 ns a byte.
// Writing past the caches takes the writer 0.03, but then the readers must go to memory, and all is slower: 64 KiB one
// way in 6 us instead of 3. Beyond such a group it is 0.5 ns, against 0.05, and the readers gain as well: 7 us instead
// of 40. So the writer's clock alone would mislead. (AMD Zen 4, two cores.)
constexpr float slow = 0.2F;  // ns per byte
constexpr float cheaper = 0.7F;
}  // namespace

void LearningCopy::operator()(void* to, const void* from, uint64_t bytes) {
  if (bytes < worth_choosing_) {
    std::memcpy(to, from, bytes);
    return;
  }
  const bool timed = phase_ == Phase::judging;
  const uint64_t start = timed ? now_ns() : 0;
  past_ != trying_other_ ? copy_past_caches(to, from, bytes)
                         : static_cast<void>(std::memcpy(to, from, bytes));
  if (timed) judge(bytes, now_ns() - start);
  if ((left_ -= static_cast<int64_t>(bytes)) <= 0) next_phase();
}

void LearningCopy::judge(uint64_t bytes, uint64_t ns) {
  if (judged_ < costs_.size()) costs_[judged_++] = static_cast<float>(ns) / static_cast<float>(bytes);
}

// Not the mean: a copy that was interrupted says nothing.
float LearningCopy::median_cost() {
  const auto middle = costs_.begin() + static_cast<std::ptrdiff_t>(judged_ / 2);
  std::nth_element(costs_.begin(), middle, costs_.begin() + static_cast<std::ptrdiff_t>(judged_));
  return *middle;
}

void LearningCopy::next_phase() {
  if (phase_ == Phase::running && now_ns() - decided_ < tried_again_after_ns)
    return enter(Phase::running, running_unwatched);
  if (phase_ != Phase::judging) {
    judged_ = 0;
    return enter(Phase::judging, judged_over);
  }
  const float cost = median_cost();
  if (!trying_other_) {
    cost_of_better_ = cost;
    trying_other_ = past_ || cost > slow;
    return trying_other_ ? enter(Phase::settling, settled_after) : decide();
  }
  const float past = past_ ? cost_of_better_ : cost, through = past_ ? cost : cost_of_better_;
  past_ = through > slow && past < cheaper * through;
  trying_other_ = false;
  decide();
}

void LearningCopy::decide() {
  decided_ = now_ns();
  enter(Phase::running, running_unwatched);
}

void LearningCopy::enter(Phase phase, int64_t bytes) {
  phase_ = phase;
  left_ = bytes;
}

}  // namespace xccl
