// The floors: what the memory itself takes for the same work, in C, when everything is known beforehand.
//
// Compiled at set-up (driver/native.py), called by parts/*_floor.py through ctypes. All ranks are processes that share
// one mapping at different addresses, so places in it are offsets from `base`. Every function waits for all ranks,
// takes the time, does its one thing and takes the time again. Nothing here is a protocol: nothing is announced,
// checked or attributed.
#pragma once

#include <stdint.h>

#include "loops.h"

// Where the ranks meet. `yields` says whether there are more ranks than cores.
struct place {
  char* base;
  int64_t meeting;  // offset of a struct meeting
  int rank, size, yields;
};

enum copy_method { COPY_MEMCPY, COPY_NON_TEMPORAL };

// Floors return 0, or -1 if this processor has no such way to copy.
int floor_has(enum copy_method method);
int floor_meet(const struct place* at);
