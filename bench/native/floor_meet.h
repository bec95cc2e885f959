// A barrier for the floors. Spins while every rank has a core, else gives the core up at once.
#pragma once

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include "floor.h"

struct meeting {
  _Alignas(64) _Atomic uint32_t arrived;  // over all meetings so far
};

static inline void relax(int yields) {
  if (yields) sched_yield();
#if defined(__x86_64__)
  else
    __builtin_ia32_pause();
#elif defined(__aarch64__)
  else
    __asm__("yield");
#endif
}

static inline void meet(const struct place* at) {
  _Atomic uint32_t* arrived = &((struct meeting*)(at->base + at->meeting))->arrived;
  // acq_rel: what a rank wrote before is seen by all after.
  const uint32_t ticket = atomic_fetch_add_explicit(arrived, 1, memory_order_acq_rel);
  const uint32_t complete = ticket - ticket % (uint32_t)at->size + (uint32_t)at->size;
  while ((int32_t)(atomic_load_explicit(arrived, memory_order_acquire) - complete) < 0) relax(at->yields);
}
