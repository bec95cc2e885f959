#include "memory/heap.hpp"

#include "base/error.hpp"

namespace xccl {
namespace {
constexpr uint64_t alignment = 64;
constexpr uint64_t shared_region_bytes = 1 << 20;
constexpr uint64_t largest_shared = shared_region_bytes / 4;
}  // namespace

Region Heap::take(uint64_t bytes) {
  const Region region = provider_.allocate(bytes);
  try {
    provider_.commit(region, 0, bytes);
  } catch (...) {
    provider_.free(region);
    throw;
  }
  show(region.bytes, 0);
  return region;
}

void Heap::give_back(const Region& region) {
  provider_.free(region);
  show(0, region.bytes);
}

std::byte* Heap::allocate(uint64_t bytes) {
  bytes = round_up(bytes ? bytes : 1, alignment);
  const std::lock_guard lock(mutex_);
  if (bytes <= largest_shared) return allocate_shared(bytes);
  const Region region = take(bytes);
  blocks_[region.base] = Block{bytes, nullptr, region};
  return region.base;
}

std::byte* Heap::allocate_shared(uint64_t bytes) {
  for (auto& [base, shared] : shared_)
    if (const auto offset = shared->ranges.allocate(bytes, alignment)) {
      blocks_[base + *offset] = Block{bytes, shared.get(), {}};
      return base + *offset;
    }
  const Region region = take(shared_region_bytes);
  auto& shared = shared_[region.base] =
      std::make_unique<Shared>(Shared{region, RangeAllocator(shared_region_bytes)});
  const uint64_t offset = *shared->ranges.allocate(bytes, alignment);
  blocks_[region.base + offset] = Block{bytes, shared.get(), {}};
  return region.base + offset;
}

std::optional<Heap::Place> Heap::find(const void* memory, uint64_t bytes) {
  auto* first = const_cast<std::byte*>(static_cast<const std::byte*>(memory));
  const std::lock_guard lock(mutex_);
  auto entry = blocks_.upper_bound(first);
  if (entry == blocks_.begin()) return std::nullopt;
  const auto& [base, block] = *--entry;
  const auto offset = static_cast<uint64_t>(first - base);
  if (offset > block.bytes || bytes > block.bytes - offset) return std::nullopt;
  const Region& region = block.shared ? block.shared->region : block.own;
  return Place{region.key, static_cast<uint64_t>(first - region.base)};
}

void Heap::free(std::byte* block) {
  const std::lock_guard lock(mutex_);
  const auto entry = blocks_.find(block);
  if (entry == blocks_.end())
    fail(Status::InvalidArgument, "freeing memory that is not an array of this rank");
  const Block freed = entry->second;
  blocks_.erase(entry);
  if (!freed.shared) return give_back(freed.own);
  freed.shared->ranges.free(static_cast<uint64_t>(block - freed.shared->region.base), freed.bytes);
  if (freed.shared->ranges.free_bytes() < shared_region_bytes) return;
  const Region region = freed.shared->region;
  shared_.erase(region.base);
  give_back(region);
}

}  // namespace xccl
