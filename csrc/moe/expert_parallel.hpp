// ExpertParallel: dispatch sends every token to the ranks that host its experts, combine brings the experts'
// results back and sums them. Both are pulls with one synchronisation (XCCL, arXiv:2508.02520, section 3.2).
// Used by the bindings. The two calls are in dispatch.cpp and combine.cpp; what they share is here.
//
// Every call has a number (seq) on its ExpertParallel, the same on all ranks. A record says "I have pulled all up
// to call k"; a piece of memory that others pull from in call n is written again only when all have said k >= n.
// In steady state that is known from the records of the call before, so it costs no wait.
#pragma once

#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "base/copy.hpp"
#include "base/machine.hpp"
#include "group/communicator.hpp"
#include "kernels/kernels.hpp"
#include "moe/ep_memory.hpp"
#include "moe/routing.hpp"

namespace xccl {

class ExpertParallel;

// What a dispatch returns: rows in the order of the layout, and the routing that made them.
struct Dispatched {
  std::shared_ptr<const Routing> routing;
  std::shared_ptr<Lease> lease;  // null once released
  uint64_t number = 0;           // of the dispatch, on its ExpertParallel
  RowFormat format;              // of x
  int64_t tag = no_tag;          // what others or this rank have said that it is for
  uint64_t rows() const { return routing->rows(); }
  // Of x: in layout "token" one for each token, else one for each row.
  uint64_t x_rows() const { return routing->token_row.empty() ? routing->rows() : routing->tokens_here; }
  // (x_rows(), format.scale_count()); null where rows are not quantised, or released.
  float* scales() const {
    if (!lease || !format.quantised()) return nullptr;
    return reinterpret_cast<float*>(lease->slot().x.base() + format.scales_at(x_rows()));
  }
};

// A dispatch or combine in two halves. start() publishes what others need of this rank and waits for nobody; finish()
// waits for what they publish, and pulls. In between the others can go on with this rank's part.
class EpCall {
 public:
  virtual ~EpCall() = default;
  virtual void start(Operation& op) = 0;
  // What a dispatch has made; null from a combine.
  virtual std::shared_ptr<Dispatched> finish(Operation& op) = 0;
};

class ExpertParallel : private Background {
 public:
  // Collective. InvalidArgument for a shape that cannot be; Mismatch when ranks disagree, naming the argument. Other
  // errors: those of all_gather. timeout < 0: the default.
  ExpertParallel(std::shared_ptr<Communicator> comm, const EpShape& shape, double timeout = -1);
  ExpertParallel(std::shared_ptr<Communicator> comm, const EpShape& shape, Placement placement,
                 double timeout = -1);
  ~ExpertParallel() override;

  const EpShape& shape() const { return shape_; }
  const Placement& placement() const { return placement_; }
  Communicator& comm() { return *comm_; }
  // Keeps this rank's memory alive for arrays over it. Closed when there is none any more.
  std::shared_ptr<EpMemory> share_memory() const {
    require_open();
    return memory_;
  }
  int local_experts() const { return placement_.count(comm_->rank()); }
  // Of the calls so far: what this rank has written into the others' segments.
  uint64_t records_written() const { return records_written_; }
  // Tokens of this rank for each expert, in all dispatches but those with an earlier routing.
  std::vector<int64_t>& expert_load() { return load_; }
  // Collective. held: the expert in each slot, by position. What was dispatched before can still be combined, since
  // slots stay what they are; its routing cannot be used for another dispatch. InvalidArgument as of Placement:
  // nothing was sent. Mismatch if ranks give different ones.
  void set_placement(std::vector<int32_t> held, double timeout);

  // Memory for `tokens` rows of the next dispatch, which then copies nothing first. Two are used in turn.
  std::byte* input_buffer(int64_t tokens, double timeout);
  // x: (tokens, hidden), which is quantised on the way if the shape says so. `routing`: null, or one made here before,
  // and then topk is not used but for its tokens.
  std::shared_ptr<Dispatched> dispatch(const void* x, const TopK& topk,
                                       std::shared_ptr<const Routing> routing, double timeout);
  // --- The same in two halves. Between them the ExpertParallel takes no other dispatch, combine or set_placement, and
  // gives no buffer that the call still reads (InvalidArgument); what was given must stay as it is, and alive. Errors of
  // the second half are those of a call that has published: they end the communicator.
  void start_dispatch(const void* x, const TopK& topk, std::shared_ptr<const Routing> routing,
                      double timeout);
  std::shared_ptr<Dispatched> finish_dispatch(double timeout);
  void start_combine(const void* rows, const Dispatched& result, const float* weights, void* y,
                     double timeout);
  void finish_combine(double timeout);
  // Whether the second half of what was started would wait for nobody. Makes progress; raises what a wait would, but for
  // Timeout.
  bool can_finish();
  // Whether the progress thread has done the second half of what was started; finish_ then waits for nobody. In any
  // thread.
  bool finished_aside() const { return finished_aside_.load(std::memory_order_acquire); }

  // Memory for the experts' results, (rows, hidden). Waits for pulls of an earlier combine of the same result.
  std::byte* output_buffer(Dispatched& result, double timeout);
  // rows: (result.rows(), hidden); weights: null or (tokens, slots); y: (tokens, hidden).
  void combine(const void* rows, const Dispatched& result, const float* weights, void* y, double timeout);

  // Not collective: waits, within the deadline, until nobody pulls from this rank any more.
  void close() {
    if (!closed_) close(Communicator::Hold(*comm_, "close"));
  }
  void close(const Communicator::Hold& hold);  // of the communicator
  bool closed() const { return closed_; }

 private:
  friend class DispatchCall;
  friend class CombineCall;
  struct Card;

  struct Pending {
    const char* name;
    uint64_t seq;
    std::unique_ptr<EpCall> call;
    std::shared_ptr<Dispatched> result = nullptr;  // of the second half, if the progress thread has done it
    std::exception_ptr error = nullptr;            // or what it met
  };

  void require_open() const;
  // --- What has been started is looked at by the thread that holds the communicator only.
  void require_idle() const;  // no call has been started and not finished
  void require_started(const char* name) const;
  // The memory was not last pulled from in the call that has been started, which this rank itself still reads.
  void require_unread(uint64_t used_by, const char* what) const;
  void start_pending(Operation& op, std::unique_ptr<EpCall> call);
  // Whether the others have published theirs of what was started.
  bool has_come(int member) const { return !talks_with(member) || board_->arrived(member, pending_->seq); }
  bool all_have_come() const;
  // --- Background: the second half of what was started
  bool try_advance() noexcept override;
  void finish_aside();
  void stay_in_background();
  void leave_background();
  std::shared_ptr<Dispatched> finish_pending(const char* name, double timeout);
  void check_dispatch(const TopK& topk, const Routing* routing) const;
  void check_combine(const void* rows, const Dispatched& result, const void* y) const;
  void require_ours(const Dispatched& result) const;
  void meet(double timeout);
  void require_agreement(const Card& mine, const std::vector<Card>& cards) const;
  void connect(const std::vector<Card>& cards);
  // Gives back what this rank has in it.
  void leave();
  // Whether records go between this rank and that one, both ways: the one pulls from the other.
  bool talks_with(int member) const {
    if (member == comm_->rank()) return false;
    return shape_.token_ranks == 0 || (member < shape_.token_ranks) != (comm_->rank() < shape_.token_ranks);
  }
  // That ranks do not agree. Where not all hear all, some see nothing of it.
  [[noreturn]] void fail_mismatch(const std::string& message, const std::vector<int>& members) const;
  // Whether somebody may still pull what this rank published up to the latest call.
  bool in_use();
  // Waits until everybody has pulled what call `seq` published.
  void await_passed(Operation& op, uint64_t seq);
  // Publishes this call's records. `pulled`: what others pull from in this call; it is stamped once the call can no
  // longer be taken back.
  void publish(Operation& op, const std::vector<Payload>& records, const std::vector<uint64_t*>& pulled);
  // Waits for everybody's records, and checks that all are in the same call as `mine`.
  void hear(Operation& op, const Payload& mine);
  const RemoteRegion& peer(int member) const { return peers_[static_cast<size_t>(member)]; }
  // A little of what a member has published, there after the next quiet(). Its place has been checked.
  void pull(int member, void* to, uint64_t offset, uint64_t bytes) {
    const RemoteRegion& from = peer(member);
    if (from.direct) {
      if (bytes) std::memcpy(to, from.direct + offset, bytes);
      return;
    }
    const Transfer transfer{to, offset, bytes};
    comm_->world().provider().get(from, &transfer, 1);
  }
  void count_load(const Routing& routing);
  void require_in_region(int member, uint64_t offset, uint64_t bytes) const;
  ResultSlot& free_result();
  // What all ranks write together either may stay in the caches for who reads it next, or would only push other things
  // out: the tokens that it is made of need their place as well.
  bool past_caches(uint64_t bytes) const {
    return bytes * static_cast<uint64_t>(comm_->size()) > shared_cache_bytes();
  }

  std::shared_ptr<Communicator> comm_;
  EpShape shape_;
  Placement placement_;
  uint64_t placements_ = 0;    // how often it has changed
  std::vector<int64_t> load_;  // (experts)
  const Kernels& kernels_;
  std::shared_ptr<EpMemory> memory_;
  const uint64_t serial_;  // tells it from all others of this process, also from those that are gone
  uint64_t id_ = 0;        // number of this ExpertParallel on its communicator
  uint64_t board_offset_ = 0;
  std::optional<Board> board_;
  std::vector<RemoteRegion> peers_;
  uint64_t seq_ = 0;  // calls completed, or started
  std::optional<Pending> pending_;
  std::atomic<bool> finished_aside_{false};  // release: result or error are there
  uint64_t before_pending_ = 0;              // the call before it, from which its second half counts
  uint64_t records_written_ = 0;
  uint64_t passed_by_all_ = 0;  // everybody has pulled what calls up to this one published
  // Which slot of each piece comes next. All are used in turn, whatever the order of the calls.
  uint64_t input_turn_ = 0, staging_turn_ = 0, route_turn_ = 0, bases_turn_ = 0;
  uint64_t side_calls_ = 0;       // input_buffer and output_buffer, which nobody else sees
  std::vector<Payload> heard_;    // of the call under way, by member
  std::vector<RoutedRow> lists_;  // likewise; kept for its memory
  LearningCopy copy_{4096};       // of rows that the caches hold
  bool closed_ = false;
};

}  // namespace xccl
