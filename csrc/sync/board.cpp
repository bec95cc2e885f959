#include "sync/board.hpp"

#include <algorithm>

namespace xccl {

void Neighbourhood::signal(int member, uint64_t offset, uint64_t value) const {
  provider->signal(controls[static_cast<size_t>(member)], offset, value);
  ring(member);
}

Board::Board(const Neighbourhood& group, std::vector<uint64_t> offsets)
    : group_(group),
      offsets_(std::move(offsets)),
      passed_(offsets_.size(), 0),
      outgoing_(offsets_.size() * record_depth) {
  std::byte* own = group.own + offsets_[static_cast<size_t>(group.self)];
  progress_ = reinterpret_cast<std::atomic<uint64_t>*>(own);
  records_ = reinterpret_cast<Record*>(own + cache_line);
}

uint64_t Board::slot_offset(int member, uint64_t seq) const {
  return offsets_[static_cast<size_t>(member)] + cache_line +
         (static_cast<uint64_t>(group_.self) * record_depth + seq % record_depth) * sizeof(Record);
}

void Board::post(int member, uint64_t seq, const Payload& payload) {
  const RemoteRegion& control = group_.controls[static_cast<size_t>(member)];
  const uint64_t offset = slot_offset(member, seq);
  if (control.direct) {
    auto& record = *reinterpret_cast<Record*>(control.direct + offset);
    record.payload = payload;
    // seq_cst: publishes the payload (release), and is step C of doorbell.hpp.
    record.seq.store(seq, std::memory_order_seq_cst);
    return group_.ring(member);
  }
  Payload& kept = outgoing_[static_cast<size_t>(member) * record_depth + seq % record_depth];
  kept = payload;
  const Transfer transfer{kept.data(), offset + offsetof(Record, payload), sizeof(Payload)};
  group_.provider->put(control, &transfer, 1);
  group_.signal(member, offset + offsetof(Record, seq), seq);
}

void Board::finish(uint64_t seq) {
  finished_ = seq;
  // release: whoever sees this number may overwrite what this rank has read until now.
  progress_->store(seq + 1, std::memory_order_release);
}

void Board::learn(int member, uint64_t seq) {
  uint64_t& known = passed_[static_cast<size_t>(member)];
  known = std::max(known, seq + 1);
}

bool Board::passed(int member, uint64_t seq) {
  uint64_t& known = passed_[static_cast<size_t>(member)];
  if (known > seq) return true;
  known = std::max(known, group_.provider->fetch(group_.controls[static_cast<size_t>(member)],
                                                 offsets_[static_cast<size_t>(member)]));
  return known > seq;
}

}  // namespace xccl
