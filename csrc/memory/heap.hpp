// The application area: memory for the user's own arrays (comm.empty) which other ranks can reach.
// A large array is a region of its own; small ones share regions. Memory is taken when an array is made and given
// back when it is freed. Safe to use from any thread, since arrays are freed wherever Python pleases.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "memory/provider.hpp"
#include "memory/range_allocator.hpp"

namespace xccl {

class Heap {
 public:
  explicit Heap(Provider& provider) : provider_(provider) {}

  // 64-byte aligned memory, not cleared; zero bytes are a valid size. OutOfMemory names the limit.
  std::byte* allocate(uint64_t bytes);
  void free(std::byte* block);

  // Where memory of the application area lies, as other ranks name it. Nothing if any of it is elsewhere.
  struct Place {
    RegionKey key;
    uint64_t offset;
  };
  std::optional<Place> find(const void* memory, uint64_t bytes);

  // From now on tells, in this word, how much memory the area takes. Relaxed: a hint for whoever looks from outside.
  void show_bytes(std::atomic<uint64_t>* bytes) { shown_ = bytes; }

 private:
  struct Shared {
    Region region;
    RangeAllocator ranges;
  };
  struct Block {
    uint64_t bytes;
    Shared* shared;  // null: the block is a region of its own
    Region own;
  };
  std::byte* allocate_shared(uint64_t bytes);
  Region take(uint64_t bytes);
  void give_back(const Region& region);
  void show(uint64_t more, uint64_t less) {
    if (shown_) shown_->store(taken_ += more - less, std::memory_order_relaxed);
  }

  Provider& provider_;
  std::atomic<uint64_t>* shown_ = nullptr;
  uint64_t taken_ = 0;
  std::mutex mutex_;
  std::map<std::byte*, std::unique_ptr<Shared>> shared_;  // by base
  std::map<std::byte*, Block> blocks_;
};

}  // namespace xccl
