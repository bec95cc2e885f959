// Dispatch, one call: route, stage, publish, wait, pull the route lists, pull the rows.
#include <algorithm>
#include <cstring>

#include "moe/expert_parallel.hpp"

namespace xccl {

class DispatchCall {
 public:
  DispatchCall(ExpertParallel& ep, Operation& op, const void* x, const TopK& topk,
               std::shared_ptr<const Routing> reused)
      : ep_(ep),
        op_(op),
        comm_(*ep.comm_),
        x_(static_cast<const std::byte*>(x)),
        tokens_(topk.tokens),
        routing_(std::move(reused)),
        fresh_(!routing_) {
    if (!fresh_) return;
    op_.phase("routing");
    made_ = std::make_shared<Routing>();
    made_->maker = ep.serial_;
    made_->id = op.seq;
    route(topk, static_cast<int>(ep.shape_.topk), ep.placement_, *made_);
    routing_ = made_;
  }

  std::shared_ptr<Dispatched> run() {
    ResultSlot& slot = ep_.free_result();
    op_.phase("staging");
    const uint64_t where = stage();
    if (fresh_) write_lists();
    ep_.exchange(op_, records(where), pulled_);
    if (staged_) ep_.staging_turn_ = (ep_.staging_turn_ + 1) % record_depth;
    if (fresh_) ep_.route_turn_ = (ep_.route_turn_ + 1) % record_depth;
    check_heard();
    if (fresh_) pull_lists();
    pull_rows(slot);
    comm_.require_trust();
    ep_.board_->finish(op_.seq);
    slot.leased.store(true, std::memory_order_relaxed);
    return std::make_shared<Dispatched>(
        Dispatched{routing_, std::make_shared<Lease>(ep_.memory_, slot), op_.seq});
  }

 private:
  uint64_t row_bytes() const { return ep_.shape_.row_bytes(); }
  int size() const { return comm_.size(); }
  int rank() const { return comm_.rank(); }
  uint64_t experts_on(int member) const { return static_cast<uint64_t>(ep_.placement_.count(member)); }

  // Makes the rows of x reachable and returns their offset in the region.
  uint64_t stage() {
    for (PulledPiece& piece : ep_.memory_->input)
      if (piece.memory.contains(x_)) {
        pulled_.push_back(&piece.used_by);
        return piece.memory.offset() + static_cast<uint64_t>(x_ - piece.memory.base());
      }
    PulledPiece& piece = ep_.memory_->staging[ep_.staging_turn_];
    if (routing_->pairs() == routing_->rows_to(ep_.placement_, rank()))
      return piece.memory.offset();  // nobody else pulls
    ep_.await_passed(op_, piece.used_by);
    const uint64_t bytes = static_cast<uint64_t>(tokens_) * row_bytes();
    piece.memory.require(bytes);
    std::memcpy(piece.memory.base(), x_, bytes);
    pulled_.push_back(&piece.used_by);
    staged_ = true;
    return piece.memory.offset();
  }

  // One list per destination rank, one after the other: counts, tokens, weights.
  void write_lists() {
    PulledPiece& piece = ep_.memory_->route[ep_.route_turn_];
    ep_.await_passed(op_, piece.used_by);
    uint64_t bytes = 0;
    for (int member = 0; member < size(); ++member) {
      list_offset_.push_back(bytes);
      bytes += EpLayout::route_list_bytes(experts_on(member), routing_->rows_to(ep_.placement_, member));
    }
    piece.memory.require(bytes);
    pulled_.push_back(&piece.used_by);
    for (int member = 0; member < size(); ++member) {
      write_list(member, piece.memory.base() + list_offset_[static_cast<size_t>(member)]);
      list_offset_[static_cast<size_t>(member)] += piece.memory.offset();
    }
  }

  void write_list(int member, std::byte* list) {
    const auto first = static_cast<size_t>(ep_.placement_.first(member)),
               last = static_cast<size_t>(ep_.placement_.first(member + 1));
    const auto& start = routing_->position_start;
    auto* counts = reinterpret_cast<uint32_t*>(list);
    for (size_t p = first; p < last; ++p) counts[p - first] = start[p + 1] - start[p];
    std::byte* tokens = list + round_up(4 * (last - first), 8);
    const size_t rows = start[last] - start[first];
    if (rows == 0) return;
    std::memcpy(tokens, &routing_->token_of_pair[start[first]], 4 * rows);
    std::memcpy(tokens + 4 * rows, &routing_->weight_of_pair[start[first]], 4 * rows);
  }

  std::vector<Payload> records(uint64_t where) const {
    std::vector<Payload> out(static_cast<size_t>(size()));
    for (int member = 0; member < size(); ++member) {
      Payload& record = out[static_cast<size_t>(member)];
      record[ep_record::kind] = fresh_ ? ep_record::dispatch : ep_record::dispatch_again;
      record[ep_record::routing] = routing_->id;
      record[ep_record::rows] = routing_->rows_to(ep_.placement_, member);
      record[ep_record::tokens] = static_cast<uint64_t>(tokens_);
      record[ep_record::where] = where;
      record[ep_record::list] = fresh_ ? list_offset_[static_cast<size_t>(member)] : 0;
      record[ep_record::finished] = ep_.board_->finished();
    }
    return out;
  }

  const Payload& heard(int member) const { return ep_.heard_[static_cast<size_t>(member)]; }

  // What others say about themselves is data: it must lie within what they may say.
  void check_heard() const {
    const auto most_tokens = static_cast<uint64_t>(ep_.shape_.max_tokens),
               most_rows = most_tokens * static_cast<uint64_t>(ep_.shape_.topk);
    for (int member = 0; member < size(); ++member) {
      const Payload& record = heard(member);
      if (record[ep_record::tokens] > most_tokens || record[ep_record::rows] > most_rows)
        fail(Status::Failure, "rank ", comm_.job_rank(member),
             " announces more than max_tokens: its record is damaged");
      if (record[ep_record::rows])
        ep_.require_in_region(member, record[ep_record::where], record[ep_record::tokens] * row_bytes());
      if (!fresh_ && (record[ep_record::tokens] != routing_->tokens_of[static_cast<size_t>(member)] ||
                      record[ep_record::rows] != routing_->rows_of[static_cast<size_t>(member)]))
        fail(Status::Failure, "rank ", comm_.job_rank(member),
             " announces other rows than the routing has: its record is damaged");
      if (fresh_)
        ep_.require_in_region(member, record[ep_record::list],
                              EpLayout::route_list_bytes(experts_on(rank()), record[ep_record::rows]));
    }
  }

  // Pulls every source's list for this rank, and from them makes the receiver's side of the routing.
  void pull_lists() {
    op_.phase("pulling routes");
    const uint64_t experts = experts_on(rank());
    std::vector<uint64_t> at;
    uint64_t bytes = 0;
    for (int member = 0; member < size(); ++member) {
      at.push_back(bytes);
      bytes += EpLayout::route_list_bytes(experts, heard(member)[ep_record::rows]);
    }
    std::vector<std::byte> lists(bytes);
    for (int member = 0; member < size(); ++member) {
      const uint64_t length = EpLayout::route_list_bytes(experts, heard(member)[ep_record::rows]);
      const Transfer transfer{lists.data() + at[static_cast<size_t>(member)], heard(member)[ep_record::list],
                              length};
      comm_.world().provider().get(ep_.peer(member), &transfer, 1);
    }
    comm_.world().provider().quiet();
    for (int member = 0; member < size(); ++member)
      check_list(member, lists.data() + at[static_cast<size_t>(member)]);
    receive(lists, at);
  }

  void check_list(int member, const std::byte* list) const {
    const uint64_t experts = experts_on(rank()), rows = heard(member)[ep_record::rows];
    uint64_t total = 0;
    for (uint64_t e = 0; e < experts; ++e) total += reinterpret_cast<const uint32_t*>(list)[e];
    const auto* tokens = reinterpret_cast<const int32_t*>(list + round_up(4 * experts, 8));
    bool ok = total == rows;
    for (uint64_t i = 0; i < rows; ++i)
      ok &= tokens[i] >= 0 && static_cast<uint64_t>(tokens[i]) < heard(member)[ep_record::tokens];
    if (!ok) fail(Status::Failure, "rank ", comm_.job_rank(member), "'s route list is damaged");
  }

  void receive(const std::vector<std::byte>& lists, const std::vector<uint64_t>& at) {
    const auto experts = static_cast<size_t>(experts_on(rank())), ranks = static_cast<size_t>(size());
    uint64_t rows = 0;
    for (int member = 0; member < size(); ++member) {
      made_->tokens_of.push_back(heard(member)[ep_record::tokens]);
      made_->rows_of.push_back(heard(member)[ep_record::rows]);
      rows += made_->rows_of.back();
    }
    made_->counts.assign(experts, 0);
    made_->row_base.assign(ranks * experts, 0);
    made_->src_rank.resize(rows);
    made_->src_token.resize(rows);
    made_->row_weight.resize(rows);
    std::vector<uint32_t> taken(ranks, 0);  // rows of each source so far: its list is in expert order too
    uint32_t row = 0;
    for (size_t e = 0; e < experts; ++e)
      for (size_t source = 0; source < ranks; ++source) {
        const std::byte* list = lists.data() + at[source];
        const uint32_t count = reinterpret_cast<const uint32_t*>(list)[e];
        const std::byte* tokens = list + round_up(4 * experts, 8);
        const std::byte* weights = tokens + 4 * heard(static_cast<int>(source))[ep_record::rows];
        made_->row_base[source * experts + e] = row;
        made_->counts[e] += count;
        if (count == 0) continue;
        std::fill_n(&made_->src_rank[row], count, static_cast<int32_t>(source));
        std::memcpy(&made_->src_token[row], tokens + 4 * taken[source], 4 * count);
        std::memcpy(&made_->row_weight[row], weights + 4 * taken[source], 4 * count);
        taken[source] += count;
        row += count;
      }
  }

  void pull_rows(ResultSlot& slot) {
    op_.phase("pulling rows");
    ep_.await_passed(op_, slot.used_by);
    const uint64_t rows = routing_->rows();
    slot.x.require(rows * row_bytes());
    std::byte* to = slot.x.base();
    // This rank's own rows come straight from x, wherever that lies; other ranks' by address where there is one.
    std::vector<const std::byte*> from(static_cast<size_t>(size()), nullptr);
    for (int member = 0; member < size(); ++member)
      if (ep_.peer(member).direct)
        from[static_cast<size_t>(member)] = ep_.peer(member).direct + heard(member)[ep_record::where];
    from[static_cast<size_t>(rank())] = x_;
    for (uint64_t row = 0; row < rows; ++row, to += row_bytes()) {
      const int source = routing_->src_rank[row];
      const auto offset = static_cast<uint64_t>(routing_->src_token[row]) * row_bytes();
      if (const std::byte* base = from[static_cast<size_t>(source)]) {
        std::memcpy(to, base + offset, row_bytes());
      } else {
        const Transfer transfer{to, heard(source)[ep_record::where] + offset, row_bytes()};
        comm_.world().provider().get(ep_.peer(source), &transfer, 1);
      }
    }
    comm_.world().provider().quiet();
  }

  ExpertParallel& ep_;
  Operation& op_;
  Communicator& comm_;
  const std::byte* x_;
  int64_t tokens_;
  std::shared_ptr<Routing> made_;  // when this call makes one
  std::shared_ptr<const Routing> routing_;
  bool fresh_;
  std::vector<uint64_t*> pulled_;  // stamps of the pieces that others pull from
  bool staged_ = false;
  std::vector<uint64_t> list_offset_;  // by member, in the region
};

std::shared_ptr<Dispatched> ExpertParallel::dispatch(const void* x, const TopK& topk,
                                                     std::shared_ptr<const Routing> routing, double timeout) {
  require_open();
  if (topk.tokens < 0 || topk.tokens > shape_.max_tokens)
    fail(Status::InvalidArgument, "x has ", topk.tokens,
         " tokens: expected 0 to max_tokens=", shape_.max_tokens);
  if (routing && routing->maker != serial_)
    fail(Status::InvalidArgument, "routing= was made by another ExpertParallel");
  if (routing && routing->tokens != topk.tokens)
    fail(Status::InvalidArgument, "x has ", topk.tokens, " tokens, but routing= was made for ",
         routing->tokens);
  std::shared_ptr<Dispatched> result;
  comm_->operate("dispatch", seq_, timeout,
                 [&](Operation& op) { result = DispatchCall(*this, op, x, topk, std::move(routing)).run(); });
  return result;
}

}  // namespace xccl
