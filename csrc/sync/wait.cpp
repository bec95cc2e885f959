#include "sync/wait.hpp"

#include <algorithm>

namespace xccl {

constinit thread_local InterruptCheck interrupt_check = nullptr;
constinit thread_local LongWaitHook long_wait = nullptr;

namespace {
constexpr uint64_t longest_sleep_ns = 50'000'000;
constexpr uint64_t vigil_interval_ns = 10'000'000;  // while yielding, when nobody sleeps
}  // namespace

WaitPolicy WaitPolicy::choose(int ranks, int cores, int64_t spin_us) {
  const uint64_t spin = spin_us >= 0     ? static_cast<uint64_t>(spin_us) * 1000
                        : ranks <= cores ? 100'000
                                         : 1'000;
  // A yield lets a rank that shares the core run at once, where a sleep and a wake cost several times as much. But
  // with many ranks per core the yields of those that wait are in the way of those that work.
  const uint64_t yield = ranks <= 8 * cores ? 1'000'000 : 20'000;
  return {spin, yield};
}

bool Waiter::until_slow(bool (*ready)(void*), void* context, int for_rank, uint64_t began,
                        const Deadline& deadline, Vigil& vigil) {
  LoggedWait logged(log_, began, vigil.phase(), vigil.awaited(for_rank));
  const uint64_t start = now_ns();
  uint64_t now = start, last_vigil = start, quiet_since = began, moved = vigil.moved();
  for (;;) {
    const uint64_t quiet = now - quiet_since;
    if (quiet < policy_.spin_ns) {
      for (int i = 0; i < 16; ++i) {
        if (ready(context)) return true;
        cpu_relax();
      }
    } else if (quiet - policy_.spin_ns < policy_.yield_ns) {
      for (int i = 0; i < 8; ++i) {
        if (ready(context)) return true;
        sched_yield();
      }
    } else {
      const uint64_t left = deadline.remaining_ns();
      const bool for_anybody = vigil.unfinished();
      doorbell_.sleep(for_anybody ? -1 : for_rank, std::min(left, longest_sleep_ns), [&] {
        if (for_anybody) vigil.progress(false);  // what came before the doorbell was set does not ring it
        return ready(context) || alarm_.load(std::memory_order_seq_cst) != 0;
      });
      if (ready(context)) return true;
    }
    if (look(vigil, true, ready, context)) return true;
    now = now_ns();
    if (const uint64_t all = vigil.moved(); all != moved) {
      moved = all;
      quiet_since = now;
    }
    if (now - last_vigil >= vigil_interval_ns) {
      last_vigil = now;
      if (interrupt_check) interrupt_check();
      vigil.keep(for_rank, ready, context);
      if (ready(context)) return true;
      logged.goes_on(now, vigil.awaited(for_rank), vigil.missing());
    }
    if (deadline.passed()) return ready(context);
  }
}

}  // namespace xccl
