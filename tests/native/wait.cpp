// A wait alone: when it sleeps, and when it does not.
#include "sync/wait.hpp"

#include "check.hpp"

using namespace xccl;

namespace {

// Is asked for what is unfinished exactly once before each sleep.
struct CountedSleeps : Vigil {
  mutable int sleeps = 0, looks = 0;
  bool moving = false;

  void alarmed() override {}
  void keep(int, bool (*)(void*), void*) override {}
  void progress(bool) override { ++looks; }
  bool unfinished() const override { return ++sleeps < 0; }
  uint64_t moved() const override { return moving ? static_cast<uint64_t>(looks) : 0; }
  const char* phase() const override { return "waiting"; }
  int awaited(int) override { return -1; }
  std::vector<int> missing() override { return {}; }
};

// Until it has slept `most` times, or has looked around so often that it will not.
int sleeps_of(CountedSleeps& vigil, int most) {
  Doorbell bell{};
  std::atomic<uint64_t> alarm{0};
  WaitLine line{};
  PeerWait peer{};
  WaitLog log(line, &peer, 0);
  Waiter waiter(bell, alarm, log, {100'000, 100'000});
  const auto ready = [&] { return vigil.sleeps >= most || vigil.looks >= 100'000; };
  CHECK(waiter.until(ready, -1, Deadline(60), vigil));
  return vigil.sleeps;
}

}  // namespace

TEST("a long wait sleeps") {
  CountedSleeps vigil;
  CHECK(sleeps_of(vigil, 3) == 3);
}

TEST("a wait in which bytes move does not sleep") {
  CountedSleeps vigil;
  vigil.moving = true;
  CHECK(sleeps_of(vigil, 3) <= 1);  // once if it did not run at all before
}

TEST_MAIN()
