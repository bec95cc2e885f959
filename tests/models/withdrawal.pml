// Taking an announced message back: a send that gives up is exact. Either its message has not been delivered and will
// not be, or it stands and is delivered; what is delivered is what was sent, though the sender's array is its caller's
// again in between. The argument is in docs/architecture.md, "Life of a message".
// The sender makes two sends, one after the other from the same array, each of which may give up at any time. It may
// close in the middle of the second, or while a verdict has no room yet, which is then lost. Records come in order
// (ring.pml), here without a ring.
//
// Models csrc/p2p/sending.cpp: offer, answered, give_up_send
// Models csrc/p2p/receiving.cpp: pull, settle, resolve, take_back, available
// Models csrc/p2p/channel.hpp: in_doubt, assume_verdicts, count_verdict, only_close_is_in_doubt, peer_has_read
// Models csrc/p2p/channel.cpp: announce_withdrawal, tell
// Models csrc/p2p/point_to_point.cpp: abandon_requests, arrived
//
// Broken WITHDRAWAL_RELEASE    the withdrawal is announced by a store that only releases
// Broken ANSWER_RELEASE        the answer is posted by a store that only releases
// Broken ANSWER_LOOK_ACQUIRE   the sender looks for an answer with a load that only acquires
// Broken DOUBT_LOOK_ACQUIRE    the receiver looks for a withdrawal with a load that only acquires
// Broken NO_LOOK_FOR_ANSWERS   the sender takes its message back without looking for an answer
// Broken NO_DOUBT              the receiver does not look for a withdrawal after it has answered
// Broken DOUBT_FIRST           the receiver looks for a withdrawal before it answers, and not again
// Broken NO_VERDICT            the sender does not say whether its message stands
// Broken CLOSE_TAKES_ALL       what is in doubt when the sender closes is taken back, though it had read the answer
// Broken CLOSE_TRUSTS_ANSWERS  what was answered before the sender closed stands, also when verdicts are missing
// Broken CLOSED_UNFENCED       a sender that closes gives its array away before others can see the withdrawal
#define SENDER 0
#define RECEIVER 1
#define PROCESSES 2
#define SENDS 2

#define RECORD(n) (n)                      // from the sender: offers and verdicts; the last is never written
#define ANSWER(id) (2 * SENDS + (id))      // `done`, from the receiver
#define WITHDRAWALS (3 * SENDS + 1)
#define ARRAY (3 * SENDS + 2)              // of the sender, pulled by the receiver
#define STATE (3 * SENDS + 3)              // of the sender
#define READ (3 * SENDS + 4)               // how many answers the sender had read when it closed
#define CELLS (3 * SENDS + 5)

#include "memory.pml"

#define OFFER 1
#define WITHDRAWN 2
#define STANDS 3
#define PACKED(kind, id) ((kind) * 4 + (id))
#define KIND(record) ((record) / 4)
#define ID(record) ((record) % 4)

#define CLOSED 1
#define SOMETHING_ELSE 9

#ifdef WITHDRAWAL_RELEASE
#define WITHDRAWAL_ORDER RELEASE
#else
#define WITHDRAWAL_ORDER SEQ_CST
#endif
#ifdef ANSWER_RELEASE
#define ANSWER_ORDER RELEASE
#else
#define ANSWER_ORDER SEQ_CST
#endif
#ifdef ANSWER_LOOK_ACQUIRE
#define ANSWER_LOOK true
#else
#define ANSWER_LOOK ORDERED(SENDER)
#endif
#ifdef DOUBT_LOOK_ACQUIRE
#define DOUBT_LOOK true
#else
#define DOUBT_LOOK ORDERED(RECEIVER)
#endif
#define IN_DOUBT (LOAD(RECEIVER, WITHDRAWALS) != verdicts)

// What the callers have been told.
bool sent[SENDS + 1], taken_back[SENDS + 1], received[SENDS + 1];
bool sender_ended = false, verdict_lost = false;

inline post(kind) {
  store(SENDER, RECORD(posted), PACKED(kind, id), SEQ_CST);
  posted++
}

inline verdict(kind) {
#ifndef NO_VERDICT
  if
  :: post(kind)
  :: verdict_lost = true  // it waits for room
  fi
#else
  true
#endif
}

proctype sender() {
  byte id = 1, posted = 0, withdrawals = 0, read = 0;
  do
  :: id > SENDS -> break
  :: id <= SENDS ->
    store(SENDER, ARRAY, id, RELAXED);
    post(OFFER);
    if
    :: ORDERED(SENDER) && LOAD(SENDER, ANSWER(id)) -> read = id; sent[id] = true
    :: true ->  // the deadline passes: PointToPoint::give_up_send
      withdrawals++;
      store(SENDER, WITHDRAWALS, withdrawals, WITHDRAWAL_ORDER);
      if
#ifdef NO_LOOK_FOR_ANSWERS
      :: ORDERED(SENDER) ->
#else
      :: ANSWER_LOOK && LOAD(SENDER, ANSWER(id)) ->
        verdict(STANDS);
        read = id;
        sent[id] = true
      :: ANSWER_LOOK && !LOAD(SENDER, ANSWER(id)) ->
#endif
        verdict(WITHDRAWN);
        assert(!received[id]);
        taken_back[id] = true
      fi
    :: id == SENDS -> goto close
    fi;
    store(SENDER, ARRAY, SOMETHING_ELSE, RELAXED);
    if
    :: verdict_lost -> goto close
    :: else -> id++
    fi
  od;
  goto ended;
close:  // PointToPoint::abandon_requests
  if
  :: LOAD(SENDER, ANSWER(1)) -> read = 1  // perhaps of a message that had been taken back
  :: true
  fi;
  store(SENDER, READ, read, SEQ_CST);
  withdrawals++;
  store(SENDER, WITHDRAWALS, withdrawals, SEQ_CST);
#ifndef CLOSED_UNFENCED
  FENCED(SENDER);  // the read-modify-write of announce_withdrawal
#endif
  store(SENDER, ARRAY, SOMETHING_ELSE, RELAXED);
  store(SENDER, STATE, CLOSED, RELEASE);
ended:
  sender_ended = true
}

#ifdef CLOSE_TAKES_ALL
#define STANDS_AFTER_CLOSE false
#else
#ifdef CLOSE_TRUSTS_ANSWERS
#define STANDS_AFTER_CLOSE (LOAD(RECEIVER, READ) >= settling)
#else
#define STANDS_AFTER_CLOSE (LOAD(RECEIVER, WITHDRAWALS) == verdicts + 1 && LOAD(RECEIVER, READ) >= settling)
#endif
#endif

inline deliver(what) {
  d_step {
    assert(value == what);
    assert(!taken_back[what]);
    assert(!received[what]);
    received[what] = true;
    value = 0
  }
}

proctype receiver() {
  byte drained = 0, verdicts = 0, offer = 0, settling = 0, value;
  short record;
  do
  // PointToPoint::arrived
  :: drained < 2 * SENDS && ORDERED(RECEIVER) && LOAD(RECEIVER, RECORD(drained)) != 0 ->
    record = LOAD(RECEIVER, RECORD(drained));
    d_step {
      drained++;
      if
      :: KIND(record) == OFFER -> assert(offer == 0); offer = ID(record)
      :: KIND(record) == WITHDRAWN ->
        verdicts++;
        if  // PointToPoint::take_back
        :: offer == ID(record) -> offer = 0
        :: settling == ID(record) -> settling = 0; value = 0
        :: else
        fi
      :: KIND(record) == STANDS -> verdicts++
      fi;
      record = 0
    }
  // PointToPoint::available, then pull
  :: offer != 0 && settling == 0 && DOUBT_LOOK && !IN_DOUBT ->
    value = LOAD(RECEIVER, ARRAY);
#ifdef DOUBT_FIRST
    if
    :: DOUBT_LOOK && IN_DOUBT -> settling = offer; store(RECEIVER, ANSWER(offer), 1, ANSWER_ORDER); offer = 0
    :: DOUBT_LOOK && !IN_DOUBT -> store(RECEIVER, ANSWER(offer), 1, ANSWER_ORDER); deliver(offer); offer = 0
    fi
#else
    store(RECEIVER, ANSWER(offer), 1, ANSWER_ORDER);
#ifdef NO_DOUBT
    deliver(offer);
    offer = 0
#else
    if
    :: DOUBT_LOOK && IN_DOUBT -> settling = offer; offer = 0
    :: DOUBT_LOOK && !IN_DOUBT -> deliver(offer); offer = 0
    fi
#endif
#endif
  // PointToPoint::settle
  :: settling != 0 && DOUBT_LOOK && !IN_DOUBT -> deliver(settling); settling = 0
  // PointToPoint::resolve: first that it has closed, then that it has posted nothing more
  :: (offer != 0 || settling != 0) && IN_DOUBT && LOAD(RECEIVER, STATE) == CLOSED ->
    if
    :: LOAD(RECEIVER, RECORD(drained)) == 0 ->
      if
      :: settling != 0 && STANDS_AFTER_CLOSE -> deliver(settling)
      :: else
      fi;
      d_step { offer = 0; settling = 0; value = 0; verdicts = LOAD(RECEIVER, WITHDRAWALS) }
    :: else
    fi
  :: sender_ended && FENCED(SENDER) && offer == 0 && settling == 0 && LOAD(RECEIVER, RECORD(drained)) == 0 -> break
  od;
  assert(!sent[1] || received[1] || verdict_lost);
  assert(!sent[2] || received[2] || verdict_lost)
}

init {
  atomic {
    run store_buffer(SENDER);
    run store_buffer(RECEIVER);
    run sender();
    run receiver()
  }
}
