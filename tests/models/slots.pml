// Reuse of memory in dispatch and combine: whatever a rank pulls is what was published for this very call, however far
// the others are ahead, though every record and every slot is written again two calls later, or one.
// In a call each rank publishes rows from a staging slot (two, in turn), from a buffer that its user holds and may use
// in every call (input_buffer, output_buffer), or none. With two objects, a rank begins a call on each and then completes
// them, in any order, as calls that do not wait would. In the end everybody closes, and the memory is used for something
// else.
//
// Models csrc/moe/expert_parallel.cpp: publish, hear, await_passed, input_buffer, output_buffer, close, in_use, connect
// Models csrc/moe/dispatch.cpp: stage, write_lists, pull_rows
// Models csrc/moe/combine.cpp: stage, write_bases, sum_direct
// Models csrc/sync/board.cpp: post, finish, learn, passed, slot_offset
// Models csrc/sync/board.hpp: arrived, read
//
// Sizes RANKS=2 OBJECTS=1 CALLS=3 GIVERS=2
// Sizes RANKS=3 OBJECTS=1 CALLS=2 GIVERS=1
// Sizes RANKS=2 OBJECTS=2 CALLS=2 GIVERS=1
//
// Broken REUSED_EARLY          a slot is written again one call early
// Broken HELD_NOT_AWAITED      a buffer that the user holds is given out without looking at who has passed it
// Broken LEARNT_TOO_MUCH       a record of a call is taken to say that its writer has finished this call
// Broken ONE_PLACE             there is one place for records, not two by the parity of the call
// Broken RECORD_RELAXED        the record's number is stored relaxed
// Broken FINISHED_FIRST        the progress word is stored before the last pull, as a relaxed store could be
// Broken ZERO_ROWS_NO_RECORD   a rank without rows publishes nothing
// Broken ZERO_ROWS_NOT_PASSED  a rank that was given no rows does not finish
// Broken NOT_ALL_AWAITED       a slot is written again when one of the others has passed it
// Broken CLOSED_EARLY          close does not wait until everybody has pulled
// Broken SHARED_BOARD          two objects share one board
#ifndef RANKS
#define RANKS 2
#define OBJECTS 1
#define CALLS 3
#define GIVERS 2
#endif
// The other ranks have no rows in any call; who has differs from object to object.
#define MAY_GIVE ((rank + o) % RANKS < GIVERS)

#define PROCESSES RANKS

#ifdef SHARED_BOARD
#define BOARD(o) 0
#else
#define BOARD(o) ((o) * PER_OBJECT)
#endif
#ifdef ONE_PLACE
#define PLACE(n) 0
#else
#define PLACE(n) ((n) % 2)
#endif
#define RECORDS (RANKS * RANKS * 2)
#define PER_OBJECT (RECORDS + RANKS + RANKS * 3)
#define CELLS (OBJECTS * PER_OBJECT)
// A record lies in its reader's segment. It says in which call it was written and what is to be pulled, 0: nothing,
// 1 + piece. That its words become visible together is shown by ring.pml.
#define RECORD(reader, writer, n) (BOARD(o) + ((reader) * RANKS + (writer)) * 2 + PLACE(n))
#define PROGRESS(member) (BOARD(o) + RECORDS + (member))
// What others pull: the number of the call for which it was written.
#define PIECE(member, which) ((o) * PER_OBJECT + RECORDS + RANKS + (member) * 3 + (which))
#define HELD 2  // after the two staging slots
#define NOTHING 3

#include "memory.pml"

#ifdef RECORD_RELAXED
#define RECORD_ORDER RELAXED
#else
#define RECORD_ORDER RELEASE  // seq_cst in the library for the doorbell's sake; here it need not be
#endif
#ifdef REUSED_EARLY
#define EARLY 1
#else
#define EARLY 0
#endif
#define SOMETHING_ELSE 99

inline next_member() { member = member + 1 + (member + 1 == rank -> 1 : 0) }
#define FIRST_MEMBER (rank == 0 -> 1 : 0)

// ExpertParallel::await_passed, with Board::passed
inline await_passed(n) {
  member = FIRST_MEMBER;
  do
  :: atomic { member >= RANKS -> member = 0; break }
#ifdef NOT_ALL_AWAITED
  :: atomic { member < RANKS && member != FIRST_MEMBER -> next_member() }
#endif
  :: atomic { member < RANKS && object[o].passed[member] + EARLY > n -> next_member() }
  :: atomic {
       member < RANKS && LOAD(rank, PROGRESS(member)) + EARLY > n && object[o].passed[member] + EARLY <= n ->
       object[o].passed[member] = LOAD(rank, PROGRESS(member));
       next_member()
     }
  od
}

// Board::post, to every member
inline post_records() {
  member = FIRST_MEMBER;
  do
  :: atomic { member >= RANKS -> member = 0; break }
  :: member < RANKS ->
    atomic {
      store(rank, RECORD(member, rank, seq), seq * 4 + (piece == NOTHING -> 0 : 1 + piece), RECORD_ORDER);
      next_member()
    }
  od
}

// Board::arrived, read and learn, of every member
inline hear() {
  member = FIRST_MEMBER;
  do
  :: atomic { member >= RANKS -> member = 0; break }
  :: atomic {
       member < RANKS && LOAD(rank, RECORD(rank, member, seq)) / 4 == seq ->
       object[o].heard[member] = LOAD(rank, RECORD(rank, member, seq)) % 4;
#ifdef LEARNT_TOO_MUCH
       object[o].passed[member] = seq + 1;
#else
       if
       :: object[o].passed[member] < seq -> object[o].passed[member] = seq
       :: else
       fi;
#endif
       object[o].given = object[o].given || object[o].heard[member];
       next_member()
     }
  od
}

inline pull() {
  member = FIRST_MEMBER;
  do
  :: atomic { member >= RANKS -> member = 0; break }
  :: atomic { member < RANKS && object[o].heard[member] == 0 -> next_member() }
  :: atomic {
       member < RANKS && object[o].heard[member] != 0 ->
       row = LOAD(rank, PIECE(member, object[o].heard[member] - 1));
       assert(row == seq);
       row = 0;
       object[o].heard[member] = 0;
       next_member()
     }
  od
}

// Board::finish
inline finish(n) { store(rank, PROGRESS(rank), n + 1, RELEASE) }

// What a rank knows of one ExpertParallel.
typedef Object {
  byte turn;
  byte used_by[3];
  byte passed[RANKS];
  byte heard[RANKS];
  bool given  // rows, in the call under way
};

// Up to the records: what can be done without waiting for anybody's.
inline begin() {
  atomic {
    if
    :: !MAY_GIVE || OBJECTS == 1 -> piece = NOTHING
    :: MAY_GIVE -> piece = object[o].turn
    :: MAY_GIVE -> piece = HELD
    fi
  };
  if
  :: piece == NOTHING
  :: else ->
#ifdef HELD_NOT_AWAITED
    if
    :: piece == HELD
    :: else -> await_passed(object[o].used_by[piece])
    fi;
#else
    await_passed(object[o].used_by[piece]);
#endif
    atomic {
      store(rank, PIECE(rank, piece), seq, RELAXED);
      object[o].used_by[piece] = seq;
      if
      :: piece == object[o].turn -> object[o].turn = 1 - object[o].turn
      :: else
      fi
    }
  fi;
#ifdef ZERO_ROWS_NO_RECORD
  if
  :: piece == NOTHING
  :: else -> post_records()
  fi;
#else
  post_records();
#endif
  piece = 0
}

inline complete() {
  hear();
#ifdef FINISHED_FIRST
  finish(seq);
  pull();
#else
  pull();
#ifdef ZERO_ROWS_NOT_PASSED
  if
  :: object[o].given -> finish(seq)
  :: else
  fi;
#else
  finish(seq);
#endif
#endif
  object[o].given = false
}

inline close() {
#ifndef CLOSED_EARLY
  await_passed(seq);
#endif
  store(rank, PIECE(rank, 0), SOMETHING_ELSE, RELAXED);
  store(rank, PIECE(rank, 1), SOMETHING_ELSE, RELAXED);
  store(rank, PIECE(rank, HELD), SOMETHING_ELSE, RELAXED)
}

// Two objects in any order.
#if OBJECTS == 1
#define FOR_EACH_OBJECT(step) step
#else
#define FOR_EACH_OBJECT(step) \
  if \
  :: step; o = 1; step \
  :: o = 1; step; o = 0; step \
  fi; \
  o = 0
#endif

proctype calls(byte rank) {
  byte seq = 0, o = 0, member, piece = 0, row;
  Object object[OBJECTS];
  FOR_EACH_OBJECT(finish(0));
  do
  :: seq == CALLS -> break
  :: seq < CALLS ->
    seq++;
    FOR_EACH_OBJECT(begin());
    FOR_EACH_OBJECT(complete())
  od;
  FOR_EACH_OBJECT(close())
}

init {
  byte r = 0;
  atomic {
    do
    :: r == RANKS -> break
    :: r < RANKS -> run store_buffer(r); run calls(r); r++
    od
  }
}
