// RangeAllocator against a plain array of bytes.
#include "memory/range_allocator.hpp"

#include <random>

#include "check.hpp"

using namespace xccl;

TEST("random ranges never overlap, are aligned, and come back whole") {
  constexpr uint64_t size = 4096;
  std::mt19937 random(1);
  RangeAllocator ranges(size);
  std::vector<bool> taken(size, false);
  std::vector<std::pair<uint64_t, uint64_t>> held;
  for (int step = 0; step < 20000; ++step) {
    if (held.empty() || random() % 2) {
      const uint64_t bytes = 1 + random() % 300, alignment = uint64_t{1} << random() % 8;
      const auto offset = ranges.allocate(bytes, alignment);
      if (!offset) {
        CHECK(bytes > 1 && !held.empty());
        continue;
      }
      CHECK(*offset % alignment == 0 && *offset + bytes <= size);
      for (uint64_t i = *offset; i < *offset + bytes; ++i) {
        CHECK(!taken[i]);
        taken[i] = true;
      }
      held.push_back({*offset, bytes});
    } else {
      const size_t which = random() % held.size();
      const auto [offset, bytes] = held[which];
      for (uint64_t i = offset; i < offset + bytes; ++i) taken[i] = false;
      ranges.free(offset, bytes);
      held.erase(held.begin() + static_cast<long>(which));
    }
    uint64_t free = 0;
    for (const bool byte : taken) free += !byte;
    CHECK(ranges.free_bytes() == free);
  }
  for (const auto& [offset, bytes] : held) ranges.free(offset, bytes);
  CHECK(ranges.largest_free() == size);
}

TEST_MAIN()
