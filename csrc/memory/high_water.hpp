// A piece of a region that takes memory up to the most it has ever needed: reserve for the worst case, pay for
// what happens. Used by communicators and ExpertParallel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/error.hpp"
#include "memory/mapping.hpp"
#include "memory/provider.hpp"
#include "memory/range_allocator.hpp"

namespace xccl {

class HighWater {
 public:
  HighWater() = default;
  HighWater(Provider& provider, const Region& region, uint64_t offset, uint64_t bytes)
      : provider_(&provider), region_(region), offset_(offset), bytes_(bytes) {}

  uint64_t offset() const { return offset_; }  // in the region
  uint64_t bytes() const { return bytes_; }
  std::byte* base() const { return region_.base + offset_; }
  bool contains(const void* pointer) const {
    const auto* p = static_cast<const std::byte*>(pointer);
    return bytes_ > 0 && p >= base() && p < base() + bytes_;
  }

  bool overlaps(const void* pointer, uint64_t bytes) const {
    const auto* p = static_cast<const std::byte*>(pointer);
    return bytes > 0 && bytes_ > 0 && p < base() + bytes_ && p + bytes > base();
  }

  // The first `bytes` are there. Takes a sixteenth more than is needed, so that slowly growing needs do not
  // mean a system call each time. OutOfMemory.
  void require(uint64_t bytes) {
    if (bytes <= committed_) return;
    if (bytes > bytes_)
      fail(Status::Failure, byte_count(bytes), " do not fit in the ", byte_count(bytes_), " reserved");
    const uint64_t goal = std::min(bytes_, round_up(bytes + (committed_ ? bytes / 16 : 0), page_granule));
    provider_->commit(region_, offset_ + committed_, goal - committed_);
    committed_ = goal;
  }

 private:
  Provider* provider_ = nullptr;
  Region region_;
  uint64_t offset_ = 0, bytes_ = 0, committed_ = 0;
};

}  // namespace xccl
