// Copying past the caches and by the way that costs less: every byte arrives, and none beside it changes.
#include "base/copy.hpp"

#include <atomic>
#include <random>

#include "base/machine.hpp"
#include "check.hpp"

using namespace xccl;

namespace {

std::string random_bytes(size_t length) {
  static std::mt19937 random(1);
  std::string out(length, '\0');
  for (char& byte : out) byte = static_cast<char>(random());
  return out;
}

template <class Copy>
void check_copy(Copy copy, size_t length, size_t from, size_t to) {
  const std::string source = random_bytes(from + length);
  std::string target(to + length + 70, '\x55');
  copy(target.data() + to, source.data() + from, length);
  CHECK(target == std::string(to, '\x55') + source.substr(from) + std::string(70, '\x55'));
}

}  // namespace

TEST("copying past the caches moves every byte, from any place to any other") {
  for (size_t length = 0; length < 300; ++length)
    for (const size_t from : {0, 1, 15, 63})
      for (const size_t to : {0, 1, 16, 33, 63}) check_copy(copy_past_caches, length, from, to);
}

TEST("the copy that learns moves every byte, whichever way it takes") {
  LearningCopy copy;
  for (int repeat = 0; repeat < 400; ++repeat)
    for (const size_t length : {1, 16 * 1024 - 1, 16 * 1024, 70'001})
      if (repeat % 8 == 0 || length > 16 * 1024 - 1)
        check_copy(std::ref(copy), length, repeat % 5, repeat % 7);
}

TEST("what was copied past the caches is there for who sees a later store") {
  std::string source = random_bytes(100'000), target(source.size(), '?');
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done.load(std::memory_order_acquire)) std::this_thread::yield();
    CHECK(target == source);
  });
  copy_past_caches(target.data(), source.data(), source.size());
  done.store(true, std::memory_order_release);
  reader.join();
}

TEST("the shared cache has a size") { CHECK(shared_cache_bytes() >= 1 << 16); }

TEST_MAIN()
