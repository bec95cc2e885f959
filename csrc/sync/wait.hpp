// Waiting: for a word in this rank's own control segment to change, with a deadline, while looking after
// deaths, alarms and Ctrl-C. Every wait of the library goes through Waiter.
// Not here: what a death means (group/world.cpp, behind Vigil).
//
// A wait spins while that can help (a core is free for the peer), then yields the core, then sleeps at the
// doorbell. A sleep lasts at most 50 ms; after each the vigil is kept. Whenever bytes have moved, it spins again: who
// slept for each piece of a large message would be woken for each.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/clock.hpp"
#include "sync/wait_log.hpp"

namespace xccl {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // yields to the sibling longer than `yield` does on current cores
#endif
}

// What a wait looks after besides its own condition.
class Vigil {
 public:
  virtual ~Vigil() = default;
  // The alarm rang. Throws when a rank that matters here died or failed.
  virtual void alarmed() = 0;
  // Called at least every 50 ms of a long wait. Throws likewise. `for_rank` as given to the wait; `ready` must be
  // asked again before concluding that an ended or closed rank will never answer: it may have answered first.
  virtual void keep(int for_rank, bool (*ready)(void*), void* context) = 0;
  // Lets work proceed that others wait for while this rank waits. Called all the time in every wait; `patient` once
  // the wait has left its spin, when there is time to look for new work.
  virtual void progress(bool patient) = 0;
  // Is such work under way? Then a sleep is for anybody, since it may need anybody's store.
  virtual bool unfinished() const = 0;
  // Bytes that such work has moved: while they grow, the next will come at once, and nobody goes to sleep.
  virtual uint64_t moved() const = 0;
  // Of the wait under way, for the log: in which phase of what it is; for whom, which need not be who will store; and
  // all who are missing. -1: nobody in particular. Asked in long waits only.
  virtual const char* phase() const = 0;
  virtual int awaited(int for_rank) = 0;
  virtual std::vector<int> missing() = 0;
};

// Checked in long waits by the thread that waits: throws to abandon the wait (Ctrl-C in Python).
using InterruptCheck = void (*)();
extern constinit thread_local InterruptCheck interrupt_check;

// Called around the part of a wait that others should know of: with true before it, with false after it. Python gives up
// its lock there (python/hot.cpp), so that short waits need not.
using LongWaitHook = void (*)(bool begins);
extern constinit thread_local LongWaitHook long_wait;
struct LongWait {
  LongWait() {
    if (long_wait) long_wait(true);
  }
  ~LongWait() {
    if (long_wait) long_wait(false);
  }
  LongWait(const LongWait&) = delete;
  LongWait& operator=(const LongWait&) = delete;
};

struct WaitPolicy {
  uint64_t spin_ns;
  uint64_t yield_ns;

  // `ranks` of this job share `cores`; spin_us < 0 lets the two decide.
  static WaitPolicy choose(int ranks, int cores, int64_t spin_us);
};

class Waiter {
 public:
  Waiter(Doorbell& doorbell, std::atomic<uint64_t>& alarm, WaitLog& log, WaitPolicy policy)
      : doorbell_(doorbell), alarm_(alarm), log_(log), policy_(policy) {}

  // Returns true once ready() is, false when the deadline passed first. for_rank: whose store makes it ready,
  // -1: anybody's. ready() must be cheap, must not throw, and must load what it polls seq_cst (doorbell.hpp).
  template <class Ready>
  bool until(Ready ready, int for_rank, const Deadline& deadline, Vigil& vigil) {
    if (ready()) return true;
    const uint64_t start = now_ns(), spin = std::min(policy_.spin_ns, deadline.remaining_ns());
    while (now_ns() - start < spin) {
      for (int i = 0; i < 16; ++i) {
        if (ready()) return true;
        cpu_relax();
      }
      if (look(vigil, false, [](void* context) { return (*static_cast<Ready*>(context))(); }, &ready))
        return true;
    }
    return until_slow([](void* context) { return (*static_cast<Ready*>(context))(); }, &ready, for_rank,
                      start, deadline, vigil);
  }

 private:
  // True when what is waited for has come: then it counts, whatever else has happened.
  bool look(Vigil& vigil, bool patient, bool (*ready)(void*), void* context) {
    // acquire: the flags that the alarm announces are visible after it.
    if (alarm_.load(std::memory_order_acquire) != 0) {
      if (ready(context)) return true;
      vigil.alarmed();
    }
    vigil.progress(patient);
    return false;
  }

  bool until_slow(bool (*ready)(void*), void* context, int for_rank, uint64_t began, const Deadline& deadline,
                  Vigil& vigil);

  Doorbell& doorbell_;
  std::atomic<uint64_t>& alarm_;
  WaitLog& log_;
  WaitPolicy policy_;
};

}  // namespace xccl
