// The ring of records between two ranks, and the eager area behind it: every message arrives once, in order and whole,
// no place is written again before it has been read, and neither side waits for ever.
// Messages lie in their record, or in one or two pieces of the sender's eager area; the receiver keeps some of them, as
// it does when nobody has asked for them yet, and frees them in any order.
//
// Models csrc/p2p/channel.cpp: ring_has_room, put, drain, tell, take_eager, open_segment, free_segment
// Models csrc/p2p/channel.hpp: has_record
//
// Broken SEQ_RELAXED           the record's number is stored relaxed
// Broken PUBLISHED_FIRST       the record's number is stored before its payload
// Broken EAGER_COPIED_LAST     the record is posted before the message lies in the eager area
// Broken CREDIT_FIRST          a place is given back before it is read, as a relaxed store of `drained` could
// Broken NO_RECORD_CHECK       the receiver takes any number for the one that it expects
// Broken ROOM_OFF_BY_ONE       the sender takes one place more than there is
// Broken CREDITS_HELD_TOO_LONG the receiver tells too seldom how far it has come
// Broken EAGER_FREED_FIRST     a piece of the eager area is given back before it is read
// Broken FREED_OUT_OF_ORDER    pieces are given back up to the last that was read, not up to the first that was not
#define MESSAGES 5
#define PLACES 2
#define AREA 3  // of the eager area, in pieces

#define SENDER 0
#define RECEIVER 1
#define PROCESSES 2

#define SEQ(n) ((n) % PLACES)
#define PAYLOAD(n) (PLACES + (n) % PLACES)
#define EAGER(position) (2 * PLACES + (position) % AREA)
#define DRAINED (2 * PLACES + AREA)
#define EAGER_FREED (DRAINED + 1)
#define CELLS (DRAINED + 2)

#include "memory.pml"

#ifdef SEQ_RELAXED
#define SEQ_ORDER RELAXED
#else
#define SEQ_ORDER SEQ_CST
#endif
#ifdef ROOM_OFF_BY_ONE
#define ROOM (PLACES + 1)
#else
#define ROOM PLACES
#endif
#ifdef CREDITS_HELD_TOO_LONG
#define HELD_BACK (PLACES + 1)
#else
#define HELD_BACK 1
#endif

// A payload: the number of its message, where it lies in the eager area, and how many pieces it has there.
#define PACKED(number, position, size) ((number) * 64 + (position) * 4 + (size))
#define NUMBER(payload) ((payload) / 64)
#define POSITION(payload) ((payload) / 4 % 16)
#define SIZE(payload) ((payload) % 4)

// Channel::take_eager; when there is no room the message goes another way, here in its record.
inline take_eager() {
  d_step {
    position = eager_end;
    if
    :: position % AREA + size > AREA -> position = (position / AREA + 1) * AREA
    :: else
    fi
  };
  if
  :: position + size - eager_freed_there > AREA -> eager_freed_there = LOAD(SENDER, EAGER_FREED)
  :: else
  fi;
  if
  :: position + size - eager_freed_there > AREA -> position = 0; size = 0
  :: else -> eager_end = position + size
  fi
}

inline copy_to_eager() {
  if
  :: size > 0 -> store(SENDER, EAGER(position), posted + 1, RELAXED)
  :: else
  fi;
  if
  :: size > 1 -> store(SENDER, EAGER(position + 1), posted + 1, RELAXED)
  :: else
  fi
}

// Channel::put
inline put() {
#ifdef PUBLISHED_FIRST
  store(SENDER, SEQ(posted), posted + 1, SEQ_ORDER);
  store(SENDER, PAYLOAD(posted), PACKED(posted + 1, position, size), RELAXED)
#else
  store(SENDER, PAYLOAD(posted), PACKED(posted + 1, position, size), RELAXED);
  store(SENDER, SEQ(posted), posted + 1, SEQ_ORDER)
#endif
}

proctype sender() {
  byte posted = 0, drained_there = 0, eager_end = 0, eager_freed_there = 0, position, size;
  do
  :: posted == MESSAGES -> break
  :: posted < MESSAGES ->
    if
    :: posted - drained_there < ROOM
    :: else ->
      atomic {
        ORDERED(SENDER) && posted - LOAD(SENDER, DRAINED) < ROOM ->
        drained_there = LOAD(SENDER, DRAINED)
      }
    fi;
    if
    :: size = 0; position = 0
    :: size = 1; take_eager()
    :: size = 2; take_eager()
    fi;
#ifdef EAGER_COPIED_LAST
    put();
    copy_to_eager();
#else
    copy_to_eager();
    put();
#endif
    posted++
  od
}

// What the receiver knows of a message in the eager area: at most two at a time here.
typedef Segment {
  byte number;
  byte position;
  byte size;
  bool free
};

// Channel::free_segment
inline free_segment(i) {
  d_step {
    segments[i].free = true;
#ifdef FREED_OUT_OF_ORDER
    eager_freed = segments[i].position + segments[i].size;
#endif
    do
    :: open > 0 && segments[0].free ->
#ifndef FREED_OUT_OF_ORDER
      eager_freed = segments[0].position + segments[0].size;
#endif
      segments[0].number = segments[1].number;
      segments[0].position = segments[1].position;
      segments[0].size = segments[1].size;
      segments[0].free = segments[1].free;
      segments[1].number = 0;
      segments[1].position = 0;
      segments[1].size = 0;
      segments[1].free = false;
      open--
    :: else -> break
    od
  };
  if
  :: eager_freed != eager_freed_told ->
    eager_freed_told = eager_freed;
    store(RECEIVER, EAGER_FREED, eager_freed, SEQ_CST)
  :: else
  fi
}

// A receive has asked for this message: it is read and given back.
inline match(i) {
  at = segments[i].position;
  size = segments[i].size;
  number = segments[i].number;
#ifdef EAGER_FREED_FIRST
  free_segment(i);
#endif
  piece = LOAD(RECEIVER, EAGER(at));
  assert(piece == number);
  if
  :: size > 1 -> piece = LOAD(RECEIVER, EAGER(at + 1)); assert(piece == number)
  :: else
  fi;
#ifndef EAGER_FREED_FIRST
  free_segment(i);
#endif
  at = 0; size = 0; number = 0; piece = 0; i = 0
}

inline tell_drained() {
  if
  :: drained - drained_told >= HELD_BACK ->
    drained_told = drained;
    store(RECEIVER, DRAINED, drained, SEQ_CST)
  :: else
  fi
}

#ifdef NO_RECORD_CHECK
#define HAS_RECORD (LOAD(RECEIVER, SEQ(drained)) != 0)
#else
#define HAS_RECORD (LOAD(RECEIVER, SEQ(drained)) == drained + 1)
#endif

proctype receiver() {
  byte drained = 0, drained_told = 0, eager_freed = 0, eager_freed_told = 0, segment_end = 0;
  byte open = 0, at, size, number, asked;
  short record, piece;
  Segment segments[2];
  do
  // Channel::drain
  :: drained < MESSAGES && open < 2 && ORDERED(RECEIVER) && HAS_RECORD ->
#ifdef CREDIT_FIRST
    drained++;
    tell_drained();
    record = LOAD(RECEIVER, PAYLOAD(drained - 1));
#else
    record = LOAD(RECEIVER, PAYLOAD(drained));
    drained++;
    tell_drained();
#endif
    assert(NUMBER(record) == drained);
    // Channel::open_segment: what it refuses as damaged never comes.
    d_step {
      if
      :: SIZE(record) > 0 ->
        assert(POSITION(record) >= segment_end);
        assert(POSITION(record) % AREA + SIZE(record) <= AREA);
        assert(POSITION(record) + SIZE(record) - eager_freed <= AREA);
        segment_end = POSITION(record) + SIZE(record);
        segments[open].number = drained;
        segments[open].position = POSITION(record);
        segments[open].size = SIZE(record);
        open++
      :: else
      fi;
      record = 0
    }
  :: open > 0 ->
    if
    :: asked = 0
    :: open > 1 && !segments[1].free -> asked = 1
    fi;
    match(asked)
  :: drained == MESSAGES && open == 0 -> break
  od
}

init {
  atomic {
    run store_buffer(SENDER);
    run store_buffer(RECEIVER);
    run sender();
    run receiver()
  }
}
