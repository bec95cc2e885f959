// Hands out ranges of an address space [0, size): best fit, neighbours merged when freed. It touches no
// memory, so it serves memory files, control segments and the heap alike.
// Not here: taking memory for a range (provider.hpp, commit).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>

namespace xccl {

class RangeAllocator {
 public:
  explicit RangeAllocator(uint64_t size);

  // Nothing when no free range is large enough. `alignment` is a power of two.
  std::optional<uint64_t> allocate(uint64_t bytes, uint64_t alignment);
  void free(uint64_t offset, uint64_t bytes);

  uint64_t free_bytes() const { return free_bytes_; }
  uint64_t largest_free() const { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }

 private:
  void insert(uint64_t offset, uint64_t bytes);
  void erase(std::map<uint64_t, uint64_t>::iterator range);

  std::map<uint64_t, uint64_t> by_offset_;           // offset -> bytes, of free ranges
  std::set<std::pair<uint64_t, uint64_t>> by_size_;  // (bytes, offset)
  uint64_t free_bytes_ = 0;
};

inline uint64_t round_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}
inline uint64_t round_down(uint64_t value, uint64_t alignment) { return value & ~(alignment - 1); }

}  // namespace xccl
