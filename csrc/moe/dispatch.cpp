// Dispatch, one call: route, stage, publish, wait, pull the route lists, pull the rows.
#include <cstring>
#include <utility>

#include "base/copy.hpp"
#include "base/test_point.hpp"
#include "moe/expert_parallel.hpp"

namespace xccl {

class DispatchCall : public EpCall {
 public:
  DispatchCall(ExpertParallel& ep, uint64_t number, const void* x, const TopK& topk,
               std::shared_ptr<const Routing> reused)
      : ep_(ep),
        comm_(*ep.comm_),
        format_(ep.shape_.dispatch_format()),
        x_(static_cast<const std::byte*>(x)),
        tokens_(topk.tokens),
        tag_(topk.tag),
        routing_(std::move(reused)),
        fresh_(!routing_) {
    if (!fresh_) return;
    made_ = std::make_shared<Routing>();
    made_->maker = ep.serial_;
    made_->id = number;
    made_->placement = ep.placements_;
    route(topk, static_cast<int>(ep.shape_.topk), ep.shape_.shared_experts, ep.placement_, comm_.rank(),
          *made_);
    routing_ = made_;
  }

  void start(Operation& op) override {
    op_ = &op;
    ResultSlot& slot = ep_.free_result();
    slot.leased.store(true, std::memory_order_relaxed);
    lease_ = std::make_shared<Lease>(ep_.memory_, slot);
    op.phase("staging");
    op.moves(routing_->pairs() * row_bytes());
    const uint64_t where = stage();
    if (fresh_) write_lists();
    XCCL_TEST_POINT("dispatch.staged");
    const std::vector<Payload> published = records(where);
    mine_ = published[static_cast<size_t>(rank())];
    ep_.publish(op, published, pulled_);
    if (staged_) ep_.staging_turn_ = (ep_.staging_turn_ + 1) % record_depth;
    if (fresh_) ep_.route_turn_ = (ep_.route_turn_ + 1) % record_depth;
  }

  std::shared_ptr<Dispatched> finish(Operation& op) override {
    op_ = &op;
    ep_.hear(op, mine_);
    check_heard();
    hear_tag();
    if (fresh_) pull_lists();
    XCCL_TEST_POINT("dispatch.listed");
    pull_rows(lease_->slot());
    XCCL_TEST_POINT("dispatch.pulled");
    comm_.require_trust();
    ep_.board_->finish(op.seq);
    if (fresh_) ep_.count_load(*routing_);
    XCCL_TEST_POINT("dispatch.finished");
    return std::make_shared<Dispatched>(Dispatched{routing_, std::move(lease_), op.seq, format_, tag_});
  }

 private:
  uint64_t row_bytes() const { return format_.row_bytes(); }
  int size() const { return comm_.size(); }
  int rank() const { return comm_.rank(); }
  uint64_t experts_on(int member) const { return static_cast<uint64_t>(ep_.placement_.count(member)); }

  // Makes the rows of x reachable and returns their offset in the region.
  uint64_t stage() {
    if (format_.quantised()) return stage_quantised();
    for (PulledPiece& piece : ep_.memory_->input)
      if (piece.memory.contains(x_)) {
        pulled_.push_back(&piece.used_by);
        return piece.memory.offset() + static_cast<uint64_t>(x_ - piece.memory.base());
      }
    PulledPiece& piece = ep_.memory_->staging[ep_.staging_turn_];
    if (routing_->pairs() == routing_->rows_to(ep_.placement_, rank()))
      return piece.memory.offset();  // nobody else pulls
    ep_.await_passed(*op_, piece.used_by);
    const uint64_t bytes = static_cast<uint64_t>(tokens_) * row_bytes();
    piece.memory.require(bytes);
    std::memcpy(piece.memory.base(), x_, bytes);
    pulled_.push_back(&piece.used_by);
    staged_ = true;
    return piece.memory.offset();
  }

  // Each token once, however many ranks and experts want it. This rank's own rows are pulled from here as well.
  uint64_t stage_quantised() {
    PulledPiece& piece = ep_.memory_->staging[ep_.staging_turn_];
    ep_.await_passed(*op_, piece.used_by);
    const auto tokens = static_cast<uint64_t>(tokens_);
    const uint64_t bytes = format_.bytes(tokens);
    piece.memory.require(bytes);
    quantise_rows(ep_.kernels_, format_, x_, tokens, piece.memory.base(), ep_.past_caches(bytes));
    x_ = piece.memory.base();
    pulled_.push_back(&piece.used_by);
    staged_ = true;
    return piece.memory.offset();
  }

  // One list per destination rank, one after the other.
  void write_lists() {
    PulledPiece& piece = ep_.memory_->route[ep_.route_turn_];
    ep_.await_passed(*op_, piece.used_by);
    piece.memory.require(routing_->pairs() * sizeof(RoutedRow));
    pulled_.push_back(&piece.used_by);
    auto* const rows = reinterpret_cast<RoutedRow*>(piece.memory.base());
    std::vector<RoutedRow*> next;
    for (int member = 0; member < size(); ++member) {
      const uint32_t before = routing_->position_start[static_cast<size_t>(ep_.placement_.first(member))];
      list_offset_.push_back(piece.memory.offset() + before * sizeof(RoutedRow));
      next.push_back(rows + before);
    }
    const auto slots = static_cast<size_t>(ep_.shape_.slots());
    for (size_t i = 0; i < routing_->position_of_slot.size(); ++i) {
      const int32_t position = routing_->position_of_slot[i];
      if (position == nowhere) continue;
      const int member = ep_.placement_.rank_of(position);
      *next[static_cast<size_t>(member)]++ = {static_cast<int32_t>(i / slots),
                                              static_cast<uint32_t>(position - ep_.placement_.first(member)),
                                              routing_->weights[i]};
    }
  }

  std::vector<Payload> records(uint64_t where) const {
    std::vector<Payload> out(static_cast<size_t>(size()));
    for (int member = 0; member < size(); ++member) {
      Payload& record = out[static_cast<size_t>(member)];
      record[ep_record::kind] = fresh_ ? ep_record::dispatch : ep_record::dispatch_again;
      record[ep_record::routing] = routing_->id;
      record[ep_record::rows] = routing_->rows_to(ep_.placement_, member);
      record[ep_record::tokens] = ep_record::with_tag(static_cast<uint64_t>(tokens_), tag_);
      record[ep_record::where] = where;
      record[ep_record::list] = fresh_ ? list_offset_[static_cast<size_t>(member)] : 0;
      record[ep_record::finished] = ep_.board_->finished();
    }
    return out;
  }

  const Payload& heard(int member) const { return ep_.heard_[static_cast<size_t>(member)]; }
  uint64_t tokens_of(int member) const { return ep_record::counted(heard(member)[ep_record::tokens]); }

  // All that say what the dispatch is for mean the same.
  void hear_tag() {
    int from = rank();
    for (int member = 0; member < size(); ++member) {
      if (member != rank() && !ep_.talks_with(member)) continue;
      const int64_t tag = ep_record::tag_of(heard(member)[ep_record::tokens]);
      if (tag == no_tag || tag == tag_) continue;
      if (tag_ != no_tag)
        ep_.fail_mismatch(text("rank ", comm_.job_rank(from), " dispatches with tag=", tag_, ", rank ",
                               comm_.job_rank(member), " with tag=", tag),
                          {member});
      tag_ = tag;
      from = member;
    }
  }

  // What others say about themselves is data: it must lie within what they may say.
  void check_heard() const {
    const auto most_tokens = static_cast<uint64_t>(ep_.shape_.max_tokens),
               most_rows = most_tokens * static_cast<uint64_t>(ep_.shape_.slots());
    for (int member = 0; member < size(); ++member) {
      const Payload& record = heard(member);
      const uint64_t tokens = tokens_of(member);
      if (tokens > most_tokens || record[ep_record::rows] > most_rows)
        fail(Status::Failure, "rank ", comm_.job_rank(member),
             " announces more than max_tokens: its record is damaged");
      if (record[ep_record::rows])
        ep_.require_in_region(member, record[ep_record::where], format_.bytes(tokens));
      if (!fresh_ && (tokens != routing_->tokens_of[static_cast<size_t>(member)] ||
                      record[ep_record::rows] != routing_->rows_of[static_cast<size_t>(member)]))
        fail(Status::Failure, "rank ", comm_.job_rank(member),
             " announces other rows than the routing has: its record is damaged");
      if (fresh_)
        ep_.require_in_region(member, record[ep_record::list], record[ep_record::rows] * sizeof(RoutedRow));
    }
  }

  // Pulls every source's list for this rank, and from them makes the receiver's side of the routing.
  void pull_lists() {
    op_->phase("pulling routes");
    uint64_t rows = 0;
    for (int member = 0; member < size(); ++member) {
      made_->tokens_of.push_back(tokens_of(member));
      made_->rows_of.push_back(heard(member)[ep_record::rows]);
      rows += made_->rows_of.back();
    }
    if (ep_.lists_.size() < rows) ep_.lists_.resize(rows);
    RoutedRow* to = ep_.lists_.data();
    for (int member = 0; member < size(); ++member) {
      const uint64_t length = made_->rows_of[static_cast<size_t>(member)];
      ep_.pull(member, to, heard(member)[ep_record::list], length * sizeof(RoutedRow));
      to += length;
    }
    comm_.world().provider().quiet();
    count_rows();
    place_rows(rows);
  }

  // Rows of each source and expert, and where the first of them is to lie.
  void count_rows() {
    const auto experts = static_cast<size_t>(experts_on(rank())), ranks = static_cast<size_t>(size());
    auto& base = made_->row_base;
    base.assign(ranks * experts, 0);
    const RoutedRow* listed = ep_.lists_.data();
    for (size_t source = 0; source < ranks; ++source) {
      bool ok = true;
      for (const RoutedRow* end = listed + made_->rows_of[source]; listed != end; ++listed) {
        ok &=
            static_cast<uint64_t>(listed->token) < made_->tokens_of[source];  // a negative one is very large
        if (listed->expert < experts)
          ++base[source * experts + listed->expert];
        else
          ok = false;
      }
      if (!ok)
        fail(Status::Failure, "rank ", comm_.job_rank(static_cast<int>(source)), "'s route list is damaged");
    }
    made_->counts.assign(experts, 0);
    uint32_t row = 0;
    for (size_t e = 0; e < experts; ++e)
      for (size_t source = 0; source < ranks; ++source) {
        const uint32_t count = std::exchange(base[source * experts + e], row);
        made_->counts[e] += count;
        row += count;
      }
  }

  void place_rows(uint64_t rows) {
    const bool token_rows = ep_.shape_.layout == RowLayout::token;
    const auto experts = static_cast<size_t>(experts_on(rank()));
    made_->src_rank.resize(rows);
    made_->src_token.resize(rows);
    made_->row_weight.resize(rows);
    made_->arrivals.reserve(rows);
    if (token_rows) made_->token_row.resize(rows);
    std::vector<uint32_t> next = made_->row_base;
    const RoutedRow* listed = ep_.lists_.data();
    for (size_t source = 0; source < static_cast<size_t>(size()); ++source) {
      int32_t token = -1;
      for (const RoutedRow* end = listed + made_->rows_of[source]; listed != end; ++listed) {
        const uint32_t row = next[source * experts + listed->expert]++;
        made_->arrivals.push_back(row);
        made_->src_rank[row] = static_cast<int32_t>(source);
        made_->src_token[row] = listed->token;
        made_->row_weight[row] = listed->weight;
        made_->tokens_here += listed->token != token;
        token = listed->token;
        if (token_rows) made_->token_row[row] = static_cast<int32_t>(made_->tokens_here - 1);
      }
    }
  }

  // In the order of arrivals: the rows of one token one after the other, so that it is read from afar once.
  void pull_rows(ResultSlot& slot) {
    op_->phase("pulling rows");
    ep_.await_passed(*op_, slot.used_by);
    const bool token_rows = ep_.shape_.layout == RowLayout::token;
    const uint64_t rows = token_rows ? routing_->tokens_here : routing_->rows();
    slot.x.require(format_.bytes(rows));
    const PulledRows pulled{slot.x.base(), rows, ep_.past_caches(format_.bytes(rows))};
    find_tokens();
    const std::vector<uint32_t>& arrivals = routing_->arrivals;
    uint64_t tokens = 0;
    for (size_t first = 0, end = 0; first < arrivals.size(); first = end) {
      end = end_of_token(first);
      if (token_rows) {
        pull_row(pulled, tokens++, arrivals[first], {});
        continue;
      }
      const std::byte* next = end < arrivals.size() ? address_of(arrivals[end]) : nullptr;
      for (size_t i = first; i < end; ++i)
        pull_row(pulled, arrivals[i], arrivals[i], part_of_row(next, i - first, end - first));
    }
    finish_streams();
    comm_.world().provider().quiet();
  }

  // Where rows go: `rows` of them, then their scales.
  struct PulledRows {
    std::byte* base;
    uint64_t rows;
    bool past_caches;
  };

  // This rank's own tokens come straight from x, wherever that lies; other ranks' by address where there is one.
  void find_tokens() {
    tokens_at_.assign(static_cast<size_t>(size()), nullptr);
    for (int member = 0; member < size(); ++member)
      if (ep_.peer(member).direct)
        tokens_at_[static_cast<size_t>(member)] = ep_.peer(member).direct + heard(member)[ep_record::where];
    tokens_at_[static_cast<size_t>(rank())] = x_;
  }

  // The arrivals from `first` on that are rows of the same token.
  size_t end_of_token(size_t first) const {
    const std::vector<uint32_t>& arrivals = routing_->arrivals;
    const uint32_t row = arrivals[first];
    size_t end = first + 1;
    while (end < arrivals.size() && routing_->src_token[arrivals[end]] == routing_->src_token[row] &&
           routing_->src_rank[arrivals[end]] == routing_->src_rank[row])
      ++end;
    return end;
  }

  const std::byte* address_of(uint32_t row) const {
    const std::byte* base = tokens_at_[static_cast<size_t>(routing_->src_rank[row])];
    return base ? base + static_cast<uint64_t>(routing_->src_token[row]) * row_bytes() : nullptr;
  }

  // Part `i` of `parts`, in cache lines: while a token goes to its rows, the next is fetched.
  Ahead part_of_row(const std::byte* row, size_t i, size_t parts) const {
    if (!row) return {};
    const uint64_t lines = row_bytes() / cache_line, first = lines * i / parts;
    return {row + first * cache_line, (lines * (i + 1) / parts - first) * cache_line};
  }

  void pull_row(const PulledRows& pulled, uint64_t at, uint32_t row, const Ahead& ahead) {
    std::byte* to = pulled.base + at * row_bytes();
    std::byte* scales = pulled.base + format_.scales_at(pulled.rows) + at * format_.scale_bytes();
    const int source = routing_->src_rank[row];
    const auto token = static_cast<uint64_t>(routing_->src_token[row]);
    const uint64_t offset = token * row_bytes(),
                   scales_offset = format_.scales_at(tokens_of(source)) + token * format_.scale_bytes();
    if (const std::byte* base = tokens_at_[static_cast<size_t>(source)]) {
      pulled.past_caches ? stream_past_caches(to, base + offset, row_bytes(), ahead)
                         : ep_.copy_(to, base + offset, row_bytes());
      if (format_.quantised()) std::memcpy(scales, base + scales_offset, format_.scale_bytes());
    } else {
      const uint64_t where = heard(source)[ep_record::where];
      const Transfer transfers[] = {{to, where + offset, row_bytes()},
                                    {scales, where + scales_offset, format_.scale_bytes()}};
      comm_.world().provider().get(ep_.peer(source), transfers, format_.quantised() ? 2 : 1);
    }
  }

  ExpertParallel& ep_;
  Operation* op_ = nullptr;  // of the half that runs
  Communicator& comm_;
  const RowFormat format_;
  const std::byte* x_;  // as the format says, once it is staged
  int64_t tokens_;
  int64_t tag_;
  std::shared_ptr<Routing> made_;  // when this call makes one
  std::shared_ptr<const Routing> routing_;
  bool fresh_;
  std::vector<uint64_t*> pulled_;  // stamps of the pieces that others pull from
  bool staged_ = false;
  std::vector<uint64_t> list_offset_;        // by member, in the region
  std::vector<const std::byte*> tokens_at_;  // by member; null where they must be fetched
  Payload mine_{};                           // the record to this rank itself
  std::shared_ptr<Lease> lease_;
};

void ExpertParallel::check_dispatch(const TopK& topk, const Routing* routing) const {
  require_open();
  if (topk.tokens < 0 || topk.tokens > shape_.max_tokens)
    fail(Status::InvalidArgument, "x has ", topk.tokens,
         " tokens: expected 0 to max_tokens=", shape_.max_tokens);
  if (topk.tokens > 0 && shape_.token_ranks > 0 && comm_->rank() >= shape_.token_ranks)
    fail(Status::InvalidArgument, "x has ", topk.tokens, " tokens: expected none on rank ", comm_->rank(),
         ", for only the first ", shape_.token_ranks, " ranks (token_ranks) have tokens");
  if (topk.tag < no_tag || topk.tag > highest_tag)
    fail(Status::InvalidArgument, "tag=", topk.tag, ": expected 0 to ", highest_tag, ", or ", no_tag,
         " for none");
  if (routing && routing->maker != serial_)
    fail(Status::InvalidArgument, "the routing was made by another ExpertParallel");
  if (routing && routing->tokens != topk.tokens)
    fail(Status::InvalidArgument, "x has ", topk.tokens, " tokens, but the routing was made for ",
         routing->tokens);
  if (routing && routing->placement != placements_)
    fail(Status::InvalidArgument,
         "the routing was made before set_placement, and its experts may have moved; dispatch with topk_idx");
}

std::shared_ptr<Dispatched> ExpertParallel::dispatch(const void* x, const TopK& topk,
                                                     std::shared_ptr<const Routing> routing, double timeout) {
  check_dispatch(topk, routing.get());
  std::shared_ptr<Dispatched> result;
  comm_->operate("dispatch", seq_, timeout, [&](Operation& op) {
    require_idle();
    op.phase("routing");
    DispatchCall call(*this, op.seq, x, topk, std::move(routing));
    call.start(op);
    result = call.finish(op);
  });
  return result;
}

void ExpertParallel::start_dispatch(const void* x, const TopK& topk, std::shared_ptr<const Routing> routing,
                                    double timeout) {
  check_dispatch(topk, routing.get());
  comm_->operate("dispatch", seq_, timeout, [&](Operation& op) {
    require_idle();
    op.phase("routing");
    start_pending(op, std::make_unique<DispatchCall>(*this, op.seq, x, topk, std::move(routing)));
  });
}

std::shared_ptr<Dispatched> ExpertParallel::finish_dispatch(double timeout) {
  return finish_pending("dispatch", timeout);
}

}  // namespace xccl
