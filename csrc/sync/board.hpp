// A board: one record per pair of ranks and turn, on which the members of a group publish what they did, and
// from which each reads only its own segment. All collectives, dispatch and combine meet on boards.
// Owned by a communicator or an ExpertParallel. Not here: what the payload means, and whom to wait for.
//
// In every member's control segment:   progress line | record[member 0][turn 0] [turn 1] | record[member 1] ...
//   progress   written by the owner: 1 + the last call of which it has read all that everybody published; so 0
//              until it has attached the others' memory, and 1 before the first call
//   record     written by that member, for the owner
#pragma once

#include <vector>

#include "memory/provider.hpp"
#include "sync/record_layout.hpp"

namespace xccl {

// How a group's members reach each other's control segments; made once per communicator.
struct Neighbourhood {
  Provider* provider;
  int self;                            // index in the group
  int self_rank;                       // rank in the job: who rings
  std::byte* own;                      // own control segment
  std::vector<RemoteRegion> controls;  // control segment of each member
  std::vector<uint64_t> doorbells;     // where in it the member sleeps for this group

  int size() const { return static_cast<int>(controls.size()); }
  // Stores a word in a member's segment, after everything put there before, and wakes it.
  void signal(int member, uint64_t offset, uint64_t value) const;
  // Wakes the member if it sleeps for this rank: after a store that it may be waiting for, which was seq_cst.
  void ring(int member) const {
    const RemoteRegion& control = controls[static_cast<size_t>(member)];
    const uint64_t offset = doorbells[static_cast<size_t>(member)];
    if (control.direct)
      reinterpret_cast<Doorbell*>(control.direct + offset)->ring(self_rank);
    else
      provider->notify(control, offset, self_rank);
  }
};

class Board {
 public:
  // Bytes that a board takes in every member's control segment.
  static uint64_t bytes(int members) {
    return cache_line + static_cast<uint64_t>(members) * record_depth * sizeof(Record);
  }

  // offsets: where the board lies in each member's control segment.
  Board(const Neighbourhood& group, std::vector<uint64_t> offsets);

  void post(int member, uint64_t seq, const Payload& payload);
  bool arrived(int member, uint64_t seq) const {
    // seq_cst: acquires the payload, and is step B of doorbell.hpp.
    return record(member, seq).seq.load(std::memory_order_seq_cst) == seq;
  }
  // The payload as it was published; the caller checks every word of it before use.
  Payload read(int member, uint64_t seq) const { return record(member, seq).payload; }

  // The same where it lies, for bytes of any value; the writer leaves it alone until this rank has finished `seq`.
  const Payload& posted(int member, uint64_t seq) const { return record(member, seq).payload; }

  // This rank has read all that calls up to `seq` published, 0: it has attached what it will read. Tells whoever asks.
  void finish(uint64_t seq);
  uint64_t finished() const { return finished_; }
  // A member said, in a record, that it has finished `seq`.
  void learn(int member, uint64_t seq);
  // Has the member finished `seq`? Looks at what is known; then, if that does not suffice, at its progress line.
  bool passed(int member, uint64_t seq);

 private:
  Record& record(int member, uint64_t seq) const {
    return records_[static_cast<uint64_t>(member) * record_depth + seq % record_depth];
  }
  uint64_t slot_offset(int member, uint64_t seq) const;

  const Neighbourhood& group_;
  std::vector<uint64_t> offsets_;
  Record* records_;                  // in the own segment
  std::atomic<uint64_t>* progress_;  // in the own segment
  uint64_t finished_ = 0;
  std::vector<uint64_t> passed_;   // progress of each member, as far as known
  std::vector<Payload> outgoing_;  // staged path: what puts read from until they are complete
};

}  // namespace xccl
