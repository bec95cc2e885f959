// Every rank puts its share into its own scratch, publishes one record to each peer, and pulls from each. Shares
// larger than a scratch slot go in rounds. Two slots are used in turn: who publishes round n + 2 has a record
// n + 1 from everybody, which each wrote after it had pulled round n.
#include "collective/all_gather.hpp"

#include <algorithm>
#include <cstring>

#include "base/test_point.hpp"
#include "group/scratch.hpp"

namespace xccl {
namespace {

enum Word : size_t { total_bytes, finished };

void check_agreement(Communicator& comm, uint64_t seq, uint64_t bytes) {
  std::vector<int> differ;
  uint64_t other = 0;
  for (int member = 0; member < comm.size(); ++member) {
    if (member == comm.rank()) continue;
    const uint64_t theirs = comm.board().read(member, seq)[total_bytes];
    if (theirs == bytes) continue;
    differ.push_back(member);
    other = theirs;
  }
  if (differ.empty()) return;
  throw Error(Status::Mismatch,
              text("rank ", comm.rank(), " gives ", bytes, " bytes, ", rank_list(differ),
                   differ.size() == 1 ? " gives " : " give (the last) ", other),
              differ);
}

// One round: `bytes` from every rank, at `offset` of each share of `total` bytes.
void round(Communicator& comm, Operation& op, const std::byte* mine, std::byte* all, uint64_t total,
           uint64_t offset, uint64_t bytes) {
  const uint64_t seq = comm.collective_seq() + 1;
  op.phase("publishing");
  if (bytes) {
    comm.scratch(seq).require(bytes);
    std::memcpy(comm.scratch(seq).base(), mine + offset, bytes);
  }
  op.publish();
  comm.collective_seq() = seq;
  for (int step = 1; step < comm.size(); ++step) {
    const int member = (comm.rank() + step) % comm.size();
    comm.board().post(member, seq, Payload{total, comm.board().finished()});
  }
  op.phase("waiting");
  comm.await_members(op, [&](int member) { return comm.board().arrived(member, seq); });
  for (int member = 0; member < comm.size(); ++member)
    if (member != comm.rank()) comm.board().learn(member, comm.board().read(member, seq)[finished]);
  check_agreement(comm, seq, total);

  XCCL_TEST_POINT("all_gather.arrived");
  op.phase("pulling");
  for (int member = 0; member < comm.size(); ++member) {
    std::byte* to = all + static_cast<uint64_t>(member) * total + offset;
    if (member == comm.rank()) {
      if (bytes) std::memcpy(to, mine + offset, bytes);
    } else {
      const Transfer transfer{to, comm.scratch(seq).offset(), bytes};
      comm.world().provider().get(comm.peer_scratch(member), &transfer, 1);
    }
  }
  comm.world().provider().quiet();
  comm.require_trust();
  comm.board().finish(seq);
}

}  // namespace

void all_gather(Communicator& comm, const void* mine, void* all, uint64_t bytes, double timeout,
                const char* on_behalf_of) {
  // Every round is a call of its own on the board, so the rounds count, not the calls.
  uint64_t calls = comm.collective_seq();
  comm.operate(on_behalf_of, calls, timeout, [&](Operation& op) {
    uint64_t offset = 0;
    do {
      const uint64_t part = std::min(bytes - offset, scratch_slot_bytes);
      round(comm, op, static_cast<const std::byte*>(mine), static_cast<std::byte*>(all), bytes, offset, part);
      offset += part;
    } while (offset < bytes);
  });
}

}  // namespace xccl
