// Shared memory as the models see it: every process writes through a store buffer of its own, written out here, so that
// a store that another process must see before a later load of ours, and does not, is found.
// Included by the models of this folder, which define CELLS (words of shared memory) and PROCESSES before.
//
// A store waits in the buffer of its process and is committed to memory at any later time. It may overtake older ones
// as an order weaker than x86's allows (C++ on aarch64):
//   RELAXED   overtakes everything but stores to the same word; so do plain stores, memcpy among them
//   RELEASE   is committed after all older stores
//   SEQ_CST   likewise; and a seq_cst load of the same process waits until it has been committed
// A load sees the newest store of its own process, else memory. Loads take place in program order, and all see one
// memory: docs/model-checking.md says what covers the rest.

#ifndef DEPTH
#define DEPTH 3
#endif

#define RELAXED 0
#define RELEASE 1
#define SEQ_CST 2

short memory[CELLS];

typedef StoreBuffer {
  byte cell[DEPTH];
  short value[DEPTH];
  byte order[DEPTH];
  byte count
};
StoreBuffer buffer[PROCESSES];

#define PENDING_AT(p, i, where) (buffer[p].count > i && buffer[p].cell[i] == (where))

// What process p sees in a word: an expression, so that it can be waited for.
#define LOAD(p, where) \
  (PENDING_AT(p, 2, where) -> buffer[p].value[2] : \
   (PENDING_AT(p, 1, where) -> buffer[p].value[1] : \
    (PENDING_AT(p, 0, where) -> buffer[p].value[0] : memory[where])))

// True when a seq_cst load of process p may take place: `ORDERED(p) && LOAD(p, where) == ...`.
#define ORDERED(p) \
  (buffer[p].order[0] != SEQ_CST && buffer[p].order[1] != SEQ_CST && buffer[p].order[2] != SEQ_CST)

// True when all stores of process p are in memory: what a full fence waits for, a system call, or, before it reads and
// writes memory itself, a read-modify-write.
#define FENCED(p) (buffer[p].count == 0)

inline store(p, where, what, how) {
  atomic {
    buffer[p].count < DEPTH;
    buffer[p].cell[buffer[p].count] = where;
    buffer[p].value[buffer[p].count] = what;
    buffer[p].order[buffer[p].count] = how;
    buffer[p].count++
  }
}

inline commit(p, i) {
  d_step {
    memory[buffer[p].cell[i]] = buffer[p].value[i];
    if
    :: i < 1 -> buffer[p].cell[0] = buffer[p].cell[1];
                buffer[p].value[0] = buffer[p].value[1];
                buffer[p].order[0] = buffer[p].order[1]
    :: else
    fi;
    if
    :: i < 2 -> buffer[p].cell[1] = buffer[p].cell[2];
                buffer[p].value[1] = buffer[p].value[2];
                buffer[p].order[1] = buffer[p].order[2]
    :: else
    fi;
    buffer[p].cell[2] = 0;
    buffer[p].value[2] = 0;
    buffer[p].order[2] = 0;
    buffer[p].count--
  }
}

#define OVERTAKES(p, i, j) (buffer[p].order[i] == RELAXED && buffer[p].cell[i] != buffer[p].cell[j])

// The hardware: commits what process p has stored, some time.
proctype store_buffer(byte p) {
end:
  do
  :: atomic { buffer[p].count > 0 -> commit(p, 0) }
  :: atomic { buffer[p].count > 1 && OVERTAKES(p, 1, 0) -> commit(p, 1) }
  :: atomic { buffer[p].count > 2 && OVERTAKES(p, 2, 0) && OVERTAKES(p, 2, 1) -> commit(p, 2) }
  od
}
