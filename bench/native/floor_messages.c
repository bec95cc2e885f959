// Floors of messages and of all-to-all: one copy out of the memory of the rank that has the data, and one flag.
#include <stddef.h>

#include "floor.h"
#include "floor_copy.h"
#include "floor_meet.h"

// A cache line of one writer. What fits rides beside the number; the number is stored last.
enum { RIDES = 56 };

struct line {
  _Alignas(64) _Atomic int64_t number;
  char data[RIDES];
};

// At offset `lines`: one for each rank, then a window's worth.
struct lines {
  struct line of_rank[64];
  struct line window[MOST_WINDOW];
};

static struct lines* lines_at(const struct place* at, int64_t offset) {
  return (struct lines*)(at->base + offset);
}

// release: the number publishes the data beside it and what was copied before.
static inline void say(struct line* line, int64_t number) {
  atomic_store_explicit(&line->number, number, memory_order_release);
}

static inline void hear(struct line* line, int64_t number, const struct place* at) {
  while (atomic_load_explicit(&line->number, memory_order_acquire) < number) relax(at->yields);
}

// Before the clock starts: everybody's numbers begin at 0 again.
static void start_over(const struct place* at, struct lines* lines) {
  meet(at);
  say(&lines->of_rank[at->rank], 0);
  if (at->rank == 0)
    for (int w = 0; w < MOST_WINDOW; ++w) say(&lines->window[w], 0);
  meet(at);
}

static copy_function* method_for(enum copy_method method, size_t bytes) {
  if (method == COPY_MEMCPY) return copy_by_memcpy;
  return bytes % 128 == 0 ? non_temporal_copy() : NULL;
}

// There and back `rounds` times. Rank r's data is at offset from[r]; small data rides in the line of its flag.
int floor_ping_pong(const struct place* at, int64_t offset, const int64_t* from, int64_t bytes,
                    int64_t rounds, enum copy_method method, struct span* taken) {
  struct lines* lines = lines_at(at, offset);
  struct line *mine = &lines->of_rank[at->rank], *theirs = &lines->of_rank[1 - at->rank];
  char *own = at->base + from[at->rank], *other = at->base + from[1 - at->rank];
  copy_function* copy = method_for(method, (size_t)bytes);
  if (!copy) return -1;
  const int rides = bytes <= RIDES;
  start_over(at, lines);
  taken->start = now_ns();
  for (int64_t i = 1; i <= rounds; ++i) {
    for (int step = 0; step < 2; ++step) {
      if (step == at->rank) {
        if (rides) memcpy(mine->data, own, (size_t)bytes);
        say(mine, i);
      } else {
        hear(theirs, i, at);
        copy(own, rides ? theirs->data : other, (size_t)bytes);
        finish_stores();
      }
    }
  }
  taken->end = now_ns();
  return 0;
}

// `window` messages, then an answer, `rounds` times; rank 1 copies every message.
int floor_stream(const struct place* at, int64_t offset, const int64_t* from, int64_t bytes, int64_t window,
                 int64_t rounds, enum copy_method method, struct span* taken) {
  struct lines* lines = lines_at(at, offset);
  char *own = at->base + from[at->rank], *other = at->base + from[1 - at->rank];
  copy_function* copy = method_for(method, (size_t)bytes);
  if (!copy || window > MOST_WINDOW) return -1;
  const int rides = bytes <= RIDES;
  start_over(at, lines);
  taken->start = now_ns();
  for (int64_t i = 1; i <= rounds; ++i) {
    for (int64_t w = 0; w < window; ++w) {
      struct line* line = &lines->window[w];
      if (at->rank == 0) {
        if (rides) memcpy(line->data, own, (size_t)bytes);
        say(line, i);
      } else {
        hear(line, i, at);
        copy(own, rides ? line->data : other, (size_t)bytes);
      }
    }
    finish_stores();
    if (at->rank == 0) hear(&lines->of_rank[1], i, at);
    if (at->rank == 1) say(&lines->of_rank[1], i);
  }
  taken->end = now_ns();
  return 0;
}

// Rank r's blocks begin at offset from[r]; every rank says that they are there and copies its own from everybody.
int floor_all_to_all(const struct place* at, int64_t offset, const int64_t* from, char* out, int64_t bytes,
                     int64_t rounds, enum copy_method method, struct span* taken) {
  struct lines* lines = lines_at(at, offset);
  copy_function* copy = method_for(method, (size_t)bytes);
  if (!copy) return -1;
  start_over(at, lines);
  taken->start = now_ns();
  for (int64_t i = 1; i <= rounds; ++i) {
    say(&lines->of_rank[at->rank], i);
    for (int step = 0; step < at->size; ++step) {
      const int source = (at->rank + step) % at->size;  // not all from the same rank at once
      hear(&lines->of_rank[source], i, at);
      copy(out + source * bytes, at->base + from[source] + at->rank * bytes, (size_t)bytes);
    }
    finish_stores();
  }
  taken->end = now_ns();
  return 0;
}
