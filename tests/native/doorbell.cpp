// The doorbell alone: the sleeper looks again before it sleeps, and a ring in between is not lost. A sleep that should
// not be lasts until its time is up, which is long. Every interleaving: tests/models/doorbell.pml.
#include "memory/doorbell.hpp"

#include <thread>

#include "base/clock.hpp"
#include "check.hpp"

using namespace xccl;

namespace {

constexpr uint64_t long_ns = 5'000'000'000;
constexpr int me = 3, other = 5;

// Sleeps with `ring` called between the look and the sleep; true when the time was not up.
template <class Ring>
bool wakes(Doorbell& bell, int for_rank, Ring ring) {
  const uint64_t start = now_ns();
  bell.sleep(for_rank, long_ns, [&] {
    ring();
    return false;
  });
  return now_ns() - start < long_ns;
}

}  // namespace

TEST("who finds what it waits for, once it has said that it sleeps, does not sleep") {
  Doorbell bell{};
  int looks = 0;
  bell.sleep(me, long_ns, [&] { return ++looks > 0; });
  CHECK(looks == 1);
}

TEST("a ring between the second look and the sleep ends it") {
  Doorbell bell{};
  CHECK(wakes(bell, me, [&] { bell.ring(me); }));
  CHECK(wakes(bell, -1, [&] { bell.ring(other); }));
  CHECK(wakes(bell, me, [&] { bell.ring_always(); }));
}

TEST("two that wait for each other in turn both get on") {
  struct Side {
    Doorbell bell{};
    std::atomic<uint64_t> record{0};
  } sides[2];
  constexpr uint64_t rounds = 2000;
  const auto play = [&](int self) {
    Side &own = sides[self], &peer = sides[1 - self];
    for (uint64_t round = 1; round <= rounds; ++round) {
      if (self == 0) {
        peer.record.store(round, std::memory_order_seq_cst);
        peer.bell.ring(self);
      }
      const auto ready = [&] { return own.record.load(std::memory_order_seq_cst) >= round; };
      while (!ready()) {
        const uint64_t start = now_ns();
        own.bell.sleep(1 - self, long_ns, ready);
        CHECK(now_ns() - start < long_ns || !ready());
      }
      if (self == 1) {
        peer.record.store(round, std::memory_order_seq_cst);
        peer.bell.ring(self);
      }
    }
  };
  std::thread one(play, 1);
  play(0);
  one.join();
}

TEST_MAIN()
