// What all floors need: which ways to copy there are, and a barrier by itself.
#include "floor.h"

#include "floor_copy.h"
#include "floor_meet.h"

int floor_has(enum copy_method method) { return method == COPY_MEMCPY || non_temporal_copy() != NULL; }

int floor_meet(const struct place* at) {
  meet(at);
  return 0;
}
