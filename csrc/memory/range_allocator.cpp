#include "memory/range_allocator.hpp"

#include <iterator>

namespace xccl {

RangeAllocator::RangeAllocator(uint64_t size) {
  if (size) insert(0, size);
}

std::optional<uint64_t> RangeAllocator::allocate(uint64_t bytes, uint64_t alignment) {
  if (bytes == 0) bytes = 1;
  for (auto fit = by_size_.lower_bound({bytes, 0}); fit != by_size_.end(); ++fit) {
    const auto [have, start] = *fit;
    const uint64_t offset = round_up(start, alignment);
    if (offset + bytes > start + have) continue;
    erase(by_offset_.find(start));
    if (offset > start) insert(start, offset - start);
    if (offset + bytes < start + have) insert(offset + bytes, start + have - offset - bytes);
    return offset;
  }
  return std::nullopt;
}

void RangeAllocator::free(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) bytes = 1;
  auto next = by_offset_.lower_bound(offset);
  if (next != by_offset_.end() && next->first == offset + bytes) {
    bytes += next->second;
    auto merged = next++;
    erase(merged);
  }
  if (next != by_offset_.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      bytes += previous->second;
      erase(previous);
    }
  }
  insert(offset, bytes);
}

void RangeAllocator::insert(uint64_t offset, uint64_t bytes) {
  by_offset_.emplace(offset, bytes);
  by_size_.emplace(bytes, offset);
  free_bytes_ += bytes;
}

void RangeAllocator::erase(std::map<uint64_t, uint64_t>::iterator range) {
  by_size_.erase({range->second, range->first});
  free_bytes_ -= range->second;
  by_offset_.erase(range);
}

}  // namespace xccl
