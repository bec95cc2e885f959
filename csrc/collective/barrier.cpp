// Dissemination barrier (Hensgen, Finkel, Manber 1988): in round k every rank signals the rank 2^k further on and
// waits for the one 2^k before, so that ceil(log2(size)) signals per rank suffice.
//
// Each round has one word per rank, written by one peer, which only grows: a peer that is already in the next
// barrier overwrites a number with a larger one, and "at least" still holds.
#include "collective/barrier.hpp"

#include "base/test_point.hpp"

namespace xccl {

void barrier(Communicator& comm, double timeout) {
  comm.operate("barrier", comm.barrier_seq(), timeout, [&](Operation& op) {
    const int size = comm.size(), rank = comm.rank();
    op.phase("waiting");
    op.publish();
    comm.come_to_barrier(op.seq);
    XCCL_TEST_POINT("barrier.come");
    for (int round = 0; (1 << round) < size; ++round) {
      const int to = (rank + (1 << round)) % size;
      const int from = (rank - (1 << round) % size + size) % size;
      comm.group().signal(to, comm.barrier_word(to, round), op.seq);
      XCCL_TEST_POINT("barrier.signalled");
      const auto* word =
          reinterpret_cast<std::atomic<uint64_t>*>(comm.group().own + comm.barrier_word(rank, round));
      // seq_cst: acquires what the others did before the barrier, and is step B of doorbell.hpp.
      const auto ready = [&] { return word->load(std::memory_order_seq_cst) >= op.seq; };
      // Who is late is not who is waited for, but whoever has not come to this barrier.
      comm.await(op, from, ready, [&](int member) { return comm.has_come_to_barrier(member, op.seq); });
    }
    XCCL_TEST_POINT("barrier.passed");
  });
}

}  // namespace xccl
