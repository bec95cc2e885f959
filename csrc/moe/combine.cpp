// Combine, one call: publish where the experts' rows are, wait, pull the row bases, sum the rows of each token.
#include <cstring>
#include <utility>

#include "base/test_point.hpp"
#include "moe/expert_parallel.hpp"

namespace xccl {

class CombineCall : public EpCall {
 public:
  CombineCall(ExpertParallel& ep, const void* rows, const Dispatched& result, const float* weights, void* y)
      : ep_(ep),
        comm_(*ep.comm_),
        format_(ep.shape_.combine_format()),
        lease_(result.lease),
        slot_(lease_->slot()),
        kept_(result.routing),
        routing_(*kept_),
        dispatch_(result.number),
        weights_(weights ? weights : routing_.weights.data()),
        rows_(static_cast<const std::byte*>(rows)),
        y_(static_cast<std::byte*>(y)) {}

  void start(Operation& op) override {
    op_ = &op;
    op.phase("staging");
    op.moves(routing_.rows() * row_bytes());
    const uint64_t where = stage(rows_);
    const uint64_t bases = write_bases();
    XCCL_TEST_POINT("combine.staged");
    const std::vector<Payload> published = records(where, bases);
    mine_ = published[static_cast<size_t>(comm_.rank())];
    ep_.publish(op, published, {&slot_.used_by, &bases_used_by()});
    ep_.bases_turn_ = (ep_.bases_turn_ + 1) % record_depth;
  }

  std::shared_ptr<Dispatched> finish(Operation& op) override {
    op_ = &op;
    ep_.hear(op, mine_);
    check_heard();
    pull_bases();
    XCCL_TEST_POINT("combine.based");
    op.phase("summing");
    const FloatEnvironment environment;
    if (all_direct())
      sum_direct(y_);
    else
      sum_staged(y_);
    XCCL_TEST_POINT("combine.summed");
    comm_.require_trust();
    ep_.board_->finish(op.seq);
    XCCL_TEST_POINT("combine.finished");
    return nullptr;
  }

 private:
  uint64_t row_bytes() const { return format_.row_bytes(); }
  int size() const { return comm_.size(); }
  int slots() const { return static_cast<int>(ep_.shape_.slots()); }

  // Makes the experts' rows reachable, copying only what lies elsewhere, and returns their offset in the region.
  uint64_t stage(const std::byte* rows) {
    if (format_.quantised()) return stage_quantised(rows);
    if (rows == slot_.x.base() && ep_.shape_.layout == RowLayout::expert) return slot_.x.offset();
    if (rows == slot_.out.base()) return slot_.out.offset();
    ep_.await_passed(*op_, slot_.used_by);
    const uint64_t bytes = routing_.rows() * row_bytes();
    slot_.out.require(bytes);
    if (bytes) std::memmove(slot_.out.base(), rows, bytes);  // the rows may be a part of this very buffer
    return slot_.out.offset();
  }

  uint64_t stage_quantised(const std::byte* rows) {
    ep_.await_passed(*op_, slot_.used_by);
    const uint64_t bytes = format_.bytes(routing_.rows());
    slot_.quantised.require(bytes);
    quantise_rows(ep_.kernels_, format_, rows, routing_.rows(), slot_.quantised.base(),
                  ep_.past_caches(bytes));
    return slot_.quantised.offset();
  }

  uint64_t& bases_used_by() { return ep_.memory_->bases[ep_.bases_turn_].used_by; }

  uint64_t write_bases() {
    PulledPiece& piece = ep_.memory_->bases[ep_.bases_turn_];
    ep_.await_passed(*op_, piece.used_by);
    const uint64_t bytes = 4 * routing_.row_base.size();
    piece.memory.require(bytes);
    if (bytes) std::memcpy(piece.memory.base(), routing_.row_base.data(), bytes);
    return piece.memory.offset();
  }

  std::vector<Payload> records(uint64_t where, uint64_t bases) const {
    const auto experts = static_cast<uint64_t>(ep_.local_experts());
    std::vector<Payload> out(static_cast<size_t>(size()));
    for (int member = 0; member < size(); ++member) {
      Payload& record = out[static_cast<size_t>(member)];
      record[ep_record::kind] = ep_record::combine;
      record[ep_record::routing] = dispatch_;
      record[ep_record::rows] = routing_.rows();
      record[ep_record::tokens] = 0;
      record[ep_record::where] = where;
      record[ep_record::list] = bases + 4 * experts * static_cast<uint64_t>(member);
      record[ep_record::finished] = ep_.board_->finished();
    }
    return out;
  }

  const Payload& heard(int member) const { return ep_.heard_[static_cast<size_t>(member)]; }

  void check_heard() const {
    for (int member = 0; member < size(); ++member) {
      if (routing_.rows_to(ep_.placement_, member) == 0) continue;
      const Payload& record = heard(member);
      if (record[ep_record::rows] > EpLayout::worst_rows(ep_.shape_, ep_.placement_, member))
        fail(Status::Failure, "rank ", comm_.job_rank(member),
             " announces more rows than there can be: its record is damaged");
      ep_.require_in_region(member, record[ep_record::where], format_.bytes(record[ep_record::rows]));
      ep_.require_in_region(member, record[ep_record::list],
                            4 * static_cast<uint64_t>(ep_.placement_.count(member)));
    }
  }

  // Which of its rank's rows the first of this rank's for each expert is. The others follow it.
  void pull_bases() {
    op_->phase("pulling bases");
    first_of_position_.resize(static_cast<size_t>(ep_.placement_.positions()));
    for (int member = 0; member < size(); ++member) {
      if (routing_.rows_to(ep_.placement_, member) == 0) continue;
      ep_.pull(member, &first_of_position_[static_cast<size_t>(ep_.placement_.first(member))],
               heard(member)[ep_record::list], 4 * static_cast<uint64_t>(ep_.placement_.count(member)));
    }
    comm_.world().provider().quiet();
    for (size_t position = 0; position < first_of_position_.size(); ++position) {
      const int member = ep_.placement_.rank_of(static_cast<int>(position));
      const uint32_t count = routing_.pairs_at(position);
      if (count > 0 && uint64_t{first_of_position_[position]} + count > heard(member)[ep_record::rows])
        fail(Status::Failure, "rank ", comm_.job_rank(member), "'s row bases are damaged");
    }
  }

  bool all_direct() const {
    for (int member = 0; member < size(); ++member)
      if (!ep_.peer(member).direct) return false;
    return true;
  }

  // The rows of `tokens` tokens, up to `slots` for each, in top-k order.
  struct Rows {
    Rows(int64_t tokens, int64_t slots)
        : rows(static_cast<size_t>(tokens * slots)), scales(rows.size()), weights(rows.size()) {}
    std::vector<const void*> rows;
    std::vector<const float*> scales;  // where rows have some
    std::vector<float> weights;
  };

  // Finds those of one token, which go to `at` and after: their weights, and where `place` says that a part of a rank's
  // region is: its offset, its bytes. Returns how many.
  template <class Place>
  int gather(int64_t token, Rows& out, size_t at, Place place) const {
    int count = 0;
    for (int64_t i = token * slots(); i < (token + 1) * slots(); ++i) {
      const int32_t position = routing_.position_of_slot[static_cast<size_t>(i)];
      if (position == nowhere) continue;
      const int member = ep_.placement_.rank_of(position);
      const Payload& record = heard(member);
      const uint64_t row = uint64_t{first_of_position_[static_cast<size_t>(position)]} +
                           routing_.place_of_slot[static_cast<size_t>(i)];
      out.weights[at] = weights_[i];
      out.rows[at] = place(member, record[ep_record::where] + row * row_bytes(), row_bytes());
      if (format_.quantised())
        out.scales[at] = reinterpret_cast<const float*>(place(member,
                                                              record[ep_record::where] +
                                                                  format_.scales_at(record[ep_record::rows]) +
                                                                  row * format_.scale_bytes(),
                                                              format_.scale_bytes()));
      ++at, ++count;
    }
    return count;
  }

  void sum(std::byte* y, const Rows& rows, size_t at, int count) const {
    sum_(y, &rows.rows[at], &rows.scales[at], &rows.weights[at], count);
  }

  void sum_direct(std::byte* y) const {
    Rows rows(1, slots());
    for (int64_t token = 0; token < routing_.tokens; ++token, y += ep_.shape_.row_bytes()) {
      const int count = gather(token, rows, 0, [&](int member, uint64_t offset, uint64_t) {
        return ep_.peer(member).direct + offset;
      });
      sum(y, rows, 0, count);
    }
  }

  // The reference: rows are fetched into private memory, some tokens at a time, then summed by the same kernel.
  void sum_staged(std::byte* y) const {
    constexpr int64_t batch = 16;
    const auto whole = [](uint64_t bytes) { return round_up(bytes, alignof(float)); };
    std::vector<std::byte> fetched(static_cast<size_t>(batch * slots()) *
                                   (whole(row_bytes()) + format_.scale_bytes()));
    Rows rows(batch, slots());
    std::vector<int> counts(batch);
    for (int64_t first = 0; first < routing_.tokens; first += batch) {
      const int64_t last = std::min(first + batch, routing_.tokens);
      std::byte* free = fetched.data();
      for (int64_t token = first; token < last; ++token) {
        const auto at = static_cast<size_t>((token - first) * slots());
        counts[static_cast<size_t>(token - first)] =
            gather(token, rows, at, [&](int member, uint64_t offset, uint64_t bytes) {
              const Transfer transfer{free, offset, bytes};
              comm_.world().provider().get(ep_.peer(member), &transfer, 1);
              return std::exchange(free, free + whole(bytes));
            });
      }
      comm_.world().provider().quiet();
      for (int64_t token = first; token < last; ++token, y += ep_.shape_.row_bytes())
        sum(y, rows, static_cast<size_t>((token - first) * slots()),
            counts[static_cast<size_t>(token - first)]);
    }
  }

  ExpertParallel& ep_;
  Operation* op_ = nullptr;  // of the half that runs
  Communicator& comm_;
  const RowFormat format_;
  const std::shared_ptr<Lease> lease_;  // the result may be released between the halves
  ResultSlot& slot_;
  const std::shared_ptr<const Routing> kept_;
  const Routing& routing_;
  const uint64_t dispatch_;  // the call that made the result: the same on all ranks
  const float* weights_;
  const std::byte* rows_;
  std::byte* y_;
  Payload mine_{};  // the record to this rank itself
  const RowSum sum_{ep_.kernels_, format_};
  std::vector<uint32_t> first_of_position_;  // among that rank's rows
};

void ExpertParallel::check_combine(const void* rows, const Dispatched& result, const void* y) const {
  require_open();
  require_ours(result);
  if (shape_.layout == RowLayout::token && rows == result.lease->slot().x.base() && result.rows() > 0)
    fail(Status::InvalidArgument,
         "rows are those of the result, one for each token in layout \"token\": expected one for each token "
         "and "
         "expert");
  if (shape_.dispatch_format().quantised() && rows == result.lease->slot().x.base() && result.rows() > 0)
    fail(Status::InvalidArgument, "rows are those of the result, which are quantised: expected ",
         element_type_name(shape_.dtype), ", such as its output buffer");
  const uint64_t bytes = static_cast<uint64_t>(result.routing->tokens) * shape_.row_bytes();
  if (EpMemory::any_result_overlaps(y, bytes))
    fail(Status::InvalidArgument,
         "the output lies in the rows of a result, which other ranks may be reading; use other memory");
}

void ExpertParallel::combine(const void* rows, const Dispatched& result, const float* weights, void* y,
                             double timeout) {
  check_combine(rows, result, y);
  comm_->operate("combine", seq_, timeout, [&](Operation& op) {
    require_idle();
    CombineCall call(*this, rows, result, weights, y);
    call.start(op);
    call.finish(op);
  });
}

void ExpertParallel::start_combine(const void* rows, const Dispatched& result, const float* weights, void* y,
                                   double timeout) {
  check_combine(rows, result, y);
  comm_->operate("combine", seq_, timeout, [&](Operation& op) {
    require_idle();
    start_pending(op, std::make_unique<CombineCall>(*this, rows, result, weights, y));
  });
}

void ExpertParallel::finish_combine(double timeout) { finish_pending("combine", timeout); }

}  // namespace xccl
