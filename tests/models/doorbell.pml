// The doorbell: no wake-up is lost, no death goes unnoticed, and a sleeper is woken only by whom it sleeps for.
// A rank waits for records of two others, in turn, as Communicator::await_members does. It never polls twice but falls
// asleep at once, and sleeps for ever where the library sleeps at most 50 ms: so a lost wake-up is a deadlock here.
// Rank 0 may die at any step; a witness then tells, and may raise false alarms.
//
// Models csrc/memory/doorbell.hpp: sleep, ring, ring_always
// Models csrc/sync/wait.cpp: until_slow
// Models csrc/sync/wait.hpp: look
// Models csrc/sync/board.cpp: post
// Models csrc/sync/board.hpp: arrived, ring
// Models csrc/group/world.cpp: announce, announce_death, hear
// Models csrc/group/communicator.cpp: alarmed, raise_if_member_down
//
// Broken NO_RECHECK            the sleeper does not look again after it has announced its sleep
// Broken WORD_RELAXED          step A, the store of the word, is relaxed
// Broken RECHECK_ACQUIRE       step B, the load of the record, acquires only
// Broken RECORD_RELEASE        step C, the store of the record, releases only
// Broken RING_FIRST            step D, the look at the word, comes before the record
// Broken SLEEPS_ON_ANY_WORD    the kernel is not told which word to expect
// Broken ALARM_NOT_LOOKED_AT   the second look is at the record alone
// Broken ALARM_RINGS_FOR_SELF  an alarm wakes only who sleeps for its sender
// Broken FLAG_AFTER_ALARM      the alarm is raised before the flag that it announces
// Broken LOWERED_AFTER_FLAGS   the alarm is lowered after the flags have been read, as a relaxed exchange could
#define ROUNDS 2

#define OWNER 2
#define WITNESS 3
#define PROCESSES 4

// Words of the owner's control segment.
#define RECORD(rank) (rank)
#define WORD 2
#define ALARM 3
#define FLAG 4
#define CELLS 5

#include "memory.pml"

#define AWAKE 0
#define ANYBODY 9
#define ASLEEP_FOR(rank) (1 + (rank))

#ifdef WORD_RELAXED
#define STEP_A RELAXED
#else
#define STEP_A SEQ_CST
#endif
#ifdef RECHECK_ACQUIRE
#define STEP_B true
#else
#define STEP_B ORDERED(OWNER)
#endif
#ifdef RECORD_RELEASE
#define STEP_C RELEASE
#else
#define STEP_C SEQ_CST
#endif

bool in_kernel = false;  // the owner sleeps
bool dead = false;       // rank 0; its pidfd says so
bool lost = false;       // the owner has raised PeerLost

// FUTEX_WAIT reads the word after a full barrier, and falls asleep in the same moment.
inline futex_wait(expected) {
  atomic {
    FENCED(OWNER);
#ifndef SLEEPS_ON_ANY_WORD
    if
    :: memory[WORD] == expected -> in_kernel = true
    :: else
    fi
#else
    in_kernel = true
#endif
  };
  !in_kernel
}

// World::hear, then Communicator::raise_if_member_down.
inline hear() {
#ifdef LOWERED_AFTER_FLAGS
  seen = LOAD(OWNER, FLAG);
  atomic { FENCED(OWNER); memory[ALARM] = 0 };
#else
  atomic { FENCED(OWNER); memory[ALARM] = 0 };
  seen = LOAD(OWNER, FLAG);
#endif
  if
  :: seen -> lost = true; goto raised
  :: else
  fi
}

// Waiter::look
inline look() {
  if
  :: LOAD(OWNER, ALARM) != 0 -> hear()
  :: else
  fi
}

// Doorbell::sleep
inline sleep(who) {
  store(OWNER, WORD, who, STEP_A);
#ifndef NO_RECHECK
  if
  :: STEP_B && LOAD(OWNER, RECORD(member)) >= round
  :: STEP_B && LOAD(OWNER, RECORD(member)) < round ->
#ifndef ALARM_NOT_LOOKED_AT
    if
    :: STEP_B && LOAD(OWNER, ALARM) != 0
    :: STEP_B && LOAD(OWNER, ALARM) == 0 -> futex_wait(who)
    fi
#else
    futex_wait(who)
#endif
  fi;
#else
  futex_wait(who);
#endif
  store(OWNER, WORD, AWAKE, RELAXED)
}

proctype owner() {
  byte round = 1, member = 0, seen;
  do
  :: round > ROUNDS -> break
  :: else ->
    do
    :: ORDERED(OWNER) && LOAD(OWNER, RECORD(member)) >= round -> break
    :: ORDERED(OWNER) && LOAD(OWNER, RECORD(member)) < round ->
      look();
      if
      :: sleep(ASLEEP_FOR(member))
      :: sleep(ANYBODY)  // messages are under way
      fi;
      look()
    od;
    if
    :: member == 0 -> member = 1
    :: else -> member = 0; round++
    fi
  od;
raised:
  assert(!lost || dead)
}

// Doorbell::ring
inline ring(rank) {
  ORDERED(rank) -> who = LOAD(rank, WORD);
  if
  :: who == ANYBODY || who == ASLEEP_FOR(rank) ->
    atomic {
      FENCED(rank);
      if
      :: memory[WORD] == who -> memory[WORD] = AWAKE; woken = true
      :: else
      fi
    };
    if
    :: woken -> in_kernel = false; woken = false  // FUTEX_WAKE
    :: else
    fi
  :: else
  fi;
  who = 0
}

proctype sender(byte rank) {
  byte round = 1, who;
  bool woken;
  do
  :: round > ROUNDS -> break
  :: rank == 0 && round <= ROUNDS -> dead = true; break
  :: round <= ROUNDS ->
#ifdef RING_FIRST
    ring(rank);
    store(rank, RECORD(rank), round, STEP_C);
#else
    store(rank, RECORD(rank), round, STEP_C);
    if
    :: rank == 0 -> dead = true; break  // between the record and the bell
    :: ring(rank)
    fi;
#endif
    round++
  od
}

// World::announce
inline announce() {
#ifdef FLAG_AFTER_ALARM
  store(WITNESS, ALARM, 1, SEQ_CST);
  store(WITNESS, FLAG, dead, SEQ_CST);
#else
  store(WITNESS, FLAG, dead, SEQ_CST);
  store(WITNESS, ALARM, 1, SEQ_CST);
#endif
#ifdef ALARM_RINGS_FOR_SELF
  ring(WITNESS)
#else
  atomic { FENCED(WITNESS); who = memory[WORD]; memory[WORD] = AWAKE };  // Doorbell::ring_always
  if
  :: who != AWAKE -> in_kernel = false
  :: else
  fi;
  who = 0
#endif
}

proctype witness() {
  byte who;
  bool woken;
  if
  :: announce()  // of something that has ended well meanwhile
  :: true
  fi;
end:
  dead;
  announce()
}

init {
  atomic {
    run store_buffer(0);
    run store_buffer(1);
    run store_buffer(OWNER);
    run store_buffer(WITNESS);
    run sender(0);
    run sender(1);
    run owner();
    run witness()
  }
}
