// The doorbell: how a rank that waits long falls asleep and how others wake it. One 32-bit futex per rank, the
// one word in shared memory, besides the alarm, that several ranks may write.
// Called by sync/wait (the sleeper) and by providers' notify (the ringer).
//
// The word says for whom its owner sleeps: 0 awake, 1 + r asleep for rank r, `anybody` asleep for all. So a rank
// that waits for 255 others is woken by the one it looks at, not 255 times.
//
// No wake-up is lost, because these four are sequentially consistent and so have one order:
//   sleeper: A store word = who   B load record            ringer: C store record   D load word
// If B misses the record, then B < C, so A < B < C < D and the ringer sees the word and wakes; and if it does so
// before the sleeper is in the kernel, the word has changed and FUTEX_WAIT returns at once. C is the store
// of the record's sequence number or flag, which Provider::signal and record stores do seq_cst for this reason.
// (Not fences: ThreadSanitizer does not see those.)
#pragma once

#include <atomic>
#include <cstdint>

#include "base/futex.hpp"

namespace xccl {

class Doorbell {
 public:
  static constexpr uint32_t awake = 0;
  static constexpr uint32_t anybody = UINT32_MAX;

  // `ready` is looked at once more between announcing the sleep and sleeping.
  template <class Ready>
  void sleep(int for_rank, uint64_t timeout_ns, Ready ready) {
    const uint32_t who = for_rank < 0 ? anybody : 1u + static_cast<uint32_t>(for_rank);
    word_.store(who, std::memory_order_seq_cst);
    if (!ready()) futex_wait(&word_, who, timeout_ns);
    // Relaxed: a ring that comes now finds a word that no longer matters, and wakes nobody.
    word_.store(awake, std::memory_order_relaxed);
  }

  void ring(int caller) {
    uint32_t who = word_.load(std::memory_order_seq_cst);
    if (who == awake || (who != anybody && who != 1u + static_cast<uint32_t>(caller))) return;
    // Only one of several ringers needs to make the system call.
    if (word_.compare_exchange_strong(who, awake, std::memory_order_seq_cst)) futex_wake_all(&word_);
  }

  // For alarms: wakes the owner whomever it sleeps for.
  void ring_always() {
    if (word_.exchange(awake, std::memory_order_seq_cst) != awake) futex_wake_all(&word_);
  }

 private:
  std::atomic<uint32_t> word_;
};

static_assert(sizeof(Doorbell) == 4);

}  // namespace xccl
