// Time and deadlines. CLOCK_MONOTONIC, because it reads the same in all processes of a host.
// Used by every layer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ctime>

namespace xccl {

inline uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(t.tv_nsec);
}

// The end of a bounded wait. Made once per public call and handed down, so that nested waits share it.
class Deadline {
 public:
  explicit Deadline(double seconds) : seconds_(seconds), end_(now_ns() + to_ns(seconds)) {}

  double seconds() const { return seconds_; }  // as asked for, for messages
  bool passed() const { return now_ns() >= end_; }
  uint64_t remaining_ns() const {
    const uint64_t now = now_ns();
    return now >= end_ ? 0 : end_ - now;
  }

 private:
  // A year is as good as for ever and cannot overflow.
  static uint64_t to_ns(double seconds) {
    return static_cast<uint64_t>(std::clamp(seconds, 0.0, 365.0 * 86400.0) * 1e9);
  }

  double seconds_;
  uint64_t end_;
};

}  // namespace xccl
