// What a library's loops "from C" look like: the same questions for all, so that only the library differs.
//
// Each loops_*.c implements these for one library, is compiled at set-up (driver/native.py) and called by
// parts/loops.py. Every loop begins with a barrier; the time is taken between that and the end. Functions return 0, or
// the library's error code.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <time.h>

// CLOCK_MONOTONIC in ns, the same clock in all processes.
struct span {
  int64_t start, end;
};

static inline int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

enum { MOST_WINDOW = 64 };

// Rank 0 sends the buffer, rank 1 receives it and sends it back, `rounds` times.
int loops_ping_pong(char* buffer, size_t bytes, int64_t rounds, struct span* taken);

// Rank 0 sends `window` messages without waiting for each; when rank 1 has them all it answers; `rounds` times.
int loops_stream(char* buffer, size_t bytes, int window, int64_t rounds, struct span* taken);

// Block r of `in` goes to rank r, block r of `out` comes from there; `bytes` a block.
int loops_all_to_all(const char* in, char* out, size_t bytes, int64_t rounds, struct span* taken);

// Only where nothing else in the process starts the library: joins, leaves; what went wrong last; a barrier.
int loops_open(int rank, int size, const char* job);
void loops_close(void);
const char* loops_error(void);
int loops_barrier(void);

// Of a library that has memory of its own for what is sent: such memory, or NULL. Freed at the end.
void* loops_memory(size_t bytes);
