#include "moe/expert_parallel.hpp"

#include <atomic>
#include <cstring>
#include <string_view>

#include "base/test_point.hpp"
#include "collective/all_gather.hpp"

namespace xccl {

// What members tell each other when an ExpertParallel is made.
struct ExpertParallel::Card {
  int64_t num_experts, hidden, max_tokens, topk, dtype, layout, results, dispatch_quant, combine_quant,
      placement, shared_experts, token_ranks;
  uint64_t board_offset;
  RegionKey region;
  uint64_t oldest_open;  // all ExpertParallel objects made before this one are closed on that rank
};

namespace {
uint64_t next_serial() {
  static std::atomic<uint64_t> made{0};
  return made.fetch_add(1, std::memory_order_relaxed) + 1;  // relaxed: only has to differ
}

// Lists are compared, and shown, by their digests.
uint64_t digest_of(const std::vector<int32_t>& experts) {
  uint64_t hash = experts.size();
  for (const int32_t expert : experts) hash = hash * 1099511628211u + static_cast<uint32_t>(expert);
  return hash;
}
std::string named_by_digest(int64_t digest) { return text("one of digest ", static_cast<uint64_t>(digest)); }
}  // namespace

ExpertParallel::ExpertParallel(std::shared_ptr<Communicator> comm, const EpShape& shape, double timeout)
    : ExpertParallel(comm, shape, even_placement(shape, comm->size()), timeout) {}

ExpertParallel::ExpertParallel(std::shared_ptr<Communicator> comm, const EpShape& shape, Placement placement,
                               double timeout)
    : comm_(std::move(comm)),
      shape_(shape),
      placement_(std::move(placement)),
      load_(static_cast<size_t>(placement_.experts())),
      kernels_(select_kernels(comm_->world().config().kernels)),
      serial_(next_serial()) {
  check(shape_, comm_->size());
  if (placement_.ranks() != comm_->size() || placement_.experts() != shape_.num_experts)
    fail(Status::InvalidArgument, "placement is for ", placement_.ranks(), " ranks and ",
         placement_.experts(), " experts: expected ", comm_->size(), " and ", shape_.num_experts);
  for (int member = 0; member < shape_.token_ranks; ++member)
    if (placement_.count(member) > 0)
      fail(Status::InvalidArgument, "placement has ", placement_.count(member), " slots for rank ", member,
           ": expected none on the first ", shape_.token_ranks,
           " ranks (token_ranks), which have tokens only");
  comm_->require_usable();
  memory_ = std::make_shared<EpMemory>(comm_->share_world(), shape_, placement_, comm_->rank());
  board_offset_ = comm_->world().allocate_lines(Board::bytes(comm_->size()));
  meet(timeout);
  stay_in_background();
}

ExpertParallel::~ExpertParallel() {
  leave_background();
  if (closed_) return;
  // Not closed by the user, perhaps in the middle of an error: do not wait for anybody.
  if (in_use()) memory_->still_pulled = true;
  leave();
}

void ExpertParallel::leave() {
  memory_.reset();
  comm_->retire(id_, {{{board_offset_, Board::bytes(comm_->size())}}, {}});
}

void ExpertParallel::meet(double timeout) {
  const auto give_lines_back = [&] { comm_->world().free_lines(board_offset_, Board::bytes(comm_->size())); };
  const Card mine{shape_.num_experts,
                  shape_.hidden,
                  shape_.max_tokens,
                  shape_.topk,
                  static_cast<int64_t>(shape_.dtype),
                  static_cast<int64_t>(shape_.layout),
                  shape_.results,
                  static_cast<int64_t>(shape_.dispatch_quant),
                  static_cast<int64_t>(shape_.combine_quant),
                  static_cast<int64_t>(placement_.digest()),
                  static_cast<int64_t>(digest_of(shape_.shared_experts)),
                  shape_.token_ranks,
                  board_offset_,
                  memory_->region().key,
                  comm_->oldest_open()};
  XCCL_TEST_POINT("ep.made");
  std::vector<Card> cards(static_cast<size_t>(comm_->size()));
  try {
    all_gather(*comm_, &mine, cards.data(), sizeof mine, timeout, Collective::expert_parallel);
  } catch (...) {
    if (!comm_->broken()) give_lines_back();  // else somebody may know them, and write there
    throw;
  }
  try {
    require_agreement(mine, cards);
  } catch (...) {
    give_lines_back();  // all see that there is no such object
    throw;
  }
  comm_->tell_failure("ExpertParallel", [&] { connect(cards); });
}

void ExpertParallel::require_agreement(const Card& mine, const std::vector<Card>& cards) const {
  static constexpr std::pair<const char*, int64_t Card::*> fields[] = {
      {"num_experts", &Card::num_experts},
      {"hidden", &Card::hidden},
      {"max_tokens", &Card::max_tokens},
      {"topk", &Card::topk},
      {"dtype", &Card::dtype},
      {"layout", &Card::layout},
      {"results", &Card::results},
      {"dispatch_quant", &Card::dispatch_quant},
      {"combine_quant", &Card::combine_quant},
      {"placement", &Card::placement},
      {"shared_experts", &Card::shared_experts},
      {"token_ranks", &Card::token_ranks}};
  for (const auto& [name, field] : fields) {
    std::vector<int> differ;
    int64_t theirs = 0;
    for (int member = 0; member < comm_->size(); ++member)
      if (cards[static_cast<size_t>(member)].*field != mine.*field)
        differ.push_back(member), theirs = cards[static_cast<size_t>(member)].*field;
    if (differ.empty()) continue;
    const auto show = [&](int64_t value) -> std::string {
      if (field == &Card::dtype) return element_type_name(static_cast<RowType>(value));
      if (field == &Card::layout) return row_layout_name(static_cast<RowLayout>(value));
      if (field == &Card::dispatch_quant || field == &Card::combine_quant)
        return quant_name(static_cast<Quant>(value));
      if (field == &Card::placement || field == &Card::shared_experts) return named_by_digest(value);
      return std::to_string(value);
    };
    throw Error(Status::Mismatch,
                text("ExpertParallel: rank ", comm_->job_rank(comm_->rank()), " has ", name, "=",
                     show(mine.*field), ", ", rank_list(comm_->job_ranks(differ)),
                     differ.size() == 1 ? " has " : " have (the last) ", show(theirs)),
                comm_->job_ranks(differ));
  }
}

void ExpertParallel::connect(const std::vector<Card>& cards) {
  XCCL_TEST_POINT("ep.met");
  std::vector<uint64_t> offsets;
  uint64_t oldest_open = UINT64_MAX;
  for (int member = 0; member < comm_->size(); ++member) {
    const Card& card = cards[static_cast<size_t>(member)];
    const uint64_t segment = comm_->group().controls[static_cast<size_t>(member)].bytes;
    if (card.board_offset % cache_line != 0 || card.board_offset > segment - Board::bytes(comm_->size()))
      fail(Status::Failure, "rank ", comm_->job_rank(member), " sent a malformed card");
    offsets.push_back(card.board_offset);
    oldest_open = std::min(oldest_open, card.oldest_open);
    try {
      peers_.push_back(comm_->world().provider().attach(comm_->job_rank(member), card.region));
    } catch (const Error&) {
      comm_->require_trust();  // who has failed meanwhile said so, and then gave its region back
      throw;
    }
  }
  comm_->free_retired(oldest_open);
  id_ = comm_->new_object();
  comm_->open(id_);
  board_.emplace(comm_->group(), std::move(offsets));
  heard_.resize(static_cast<size_t>(comm_->size()));
  board_->finish(0);
}

void ExpertParallel::require_open() const {
  if (closed_) fail(Status::Closed, "this ExpertParallel is closed");
}

void ExpertParallel::require_ours(const Dispatched& result) const {
  if (result.routing->maker != serial_)
    fail(Status::InvalidArgument, "this result was made by another ExpertParallel");
  if (!result.lease)
    fail(Status::InvalidArgument,
         "this result has been released; its rows are gone (its routing may still be used)");
}

void ExpertParallel::require_in_region(int member, uint64_t offset, uint64_t bytes) const {
  const uint64_t have = peer(member).bytes;
  if (offset > have || bytes > have - offset)
    fail(Status::Failure, "rank ", comm_->job_rank(member),
         " names memory outside its region: its record is damaged");
}

bool ExpertParallel::in_use() {
  if (!board_ || comm_->world().forked()) return false;
  for (int member = 0; member < comm_->size(); ++member)
    if (talks_with(member) && !board_->passed(member, seq_) && comm_->running(member)) return true;
  return false;
}

void ExpertParallel::await_passed(Operation& op, uint64_t seq) {
  if (seq <= passed_by_all_) return;
  for (int member = 0; member < comm_->size(); ++member) {
    if (!talks_with(member) || board_->passed(member, seq)) continue;
    comm_->await_remote(op, member, [&](int other) { return board_->passed(other, seq); });
  }
  passed_by_all_ = seq;
}

void ExpertParallel::require_idle() const {
  require_open();
  if (pending_)
    fail(Status::InvalidArgument, pending_->name, " #", pending_->seq,
         " has been started on this ExpertParallel and not been waited for: wait for it first; another "
         "ExpertParallel may have one of its own");
}

void ExpertParallel::require_started(const char* name) const {
  require_open();
  if (!pending_ || std::string_view(pending_->name) != name)
    fail(Status::InvalidArgument, "no ", name, " has been started on this ExpertParallel");
}

void ExpertParallel::require_unread(uint64_t used_by, const char* what) const {
  if (pending_ && used_by == pending_->seq)
    fail(Status::InvalidArgument, "the ", what, " is in use until ", pending_->name, " #", pending_->seq,
         ", which has been started, has been waited for: wait for it first");
}

void ExpertParallel::start_pending(Operation& op, std::unique_ptr<EpCall> call) {
  call->start(op);
  pending_ = Pending{op.name, op.seq, std::move(call)};
  before_pending_ = op.seq - 1;
  if (ProgressThread* thread = comm_->world().progress_thread()) thread->wake();
}

std::shared_ptr<Dispatched> ExpertParallel::finish_pending(const char* name, double timeout) {
  require_open();
  std::shared_ptr<Dispatched> result;
  comm_->operate(name, before_pending_, timeout, [&](Operation& op) {
    require_started(name);
    op.publish();  // it has been, in the first half
    if (pending_->error) std::rethrow_exception(pending_->error);
    result = finished_aside() ? pending_->result : pending_->call->finish(op);
    finished_aside_.store(false, std::memory_order_relaxed);
    pending_.reset();
  });
  return result;
}

bool ExpertParallel::can_finish() {
  const Communicator::Hold hold(*comm_, "test");
  require_open();
  if (!pending_) fail(Status::InvalidArgument, "nothing has been started on this ExpertParallel");
  if (finished_aside()) return true;
  comm_->require_fine(pending_->name, pending_->seq);
  if (all_have_come()) return true;
  comm_->progress(false);
  try {
    return comm_->glance([this] { return all_have_come(); }, [this](int member) { return has_come(member); });
  } catch (Error& error) {
    comm_->end(error.during(pending_->name, pending_->seq, "asking"));  // as where a call waits
    throw;
  }
}

bool ExpertParallel::all_have_come() const {
  for (int member = 0; member < comm_->size(); ++member)
    if (!has_come(member)) return false;
  return true;
}

bool ExpertParallel::try_advance() noexcept {
  if (!comm_->try_hold()) return true;  // a call of the application, which may start or finish something
  const bool started = !closed_ && pending_ && !finished_aside() && !comm_->world().forked();
  const bool over = started && (comm_->broken() || all_have_come());
  if (over) finish_aside();
  comm_->unhold();
  return started && !over;
}

void ExpertParallel::finish_aside() {
  try {
    comm_->operate_aside(pending_->name, pending_->seq, [&](Operation& op) {
      op.publish();  // it has been, in the first half
      pending_->result = pending_->call->finish(op);
    });
  } catch (...) {
    pending_->error = std::current_exception();
  }
  finished_aside_.store(true, std::memory_order_release);
}

void ExpertParallel::stay_in_background() {
  if (ProgressThread* thread = comm_->world().progress_thread()) thread->add(this);
}

void ExpertParallel::leave_background() {
  if (ProgressThread* thread = comm_->world().progress_thread()) thread->remove(this);
}

void ExpertParallel::publish(Operation& op, const std::vector<Payload>& records,
                             const std::vector<uint64_t*>& pulled) {
  Communicator& comm = *comm_;
  op.phase("publishing");
  op.publish();
  for (uint64_t* used_by : pulled) *used_by = op.seq;
  for (int step = 1; step < comm.size(); ++step) {
    const int member = (comm.rank() + step) % comm.size();
    if (!talks_with(member)) continue;
    XCCL_TEST_POINT("ep.posting");
    board_->post(member, op.seq, records[static_cast<size_t>(member)]);
    ++records_written_;
  }
  XCCL_TEST_POINT("ep.published");
}

void ExpertParallel::hear(Operation& op, const Payload& mine) {
  Communicator& comm = *comm_;
  op.phase("waiting");
  comm.await_members(op, [&](int member) { return !talks_with(member) || board_->arrived(member, op.seq); });
  XCCL_TEST_POINT("ep.arrived");

  std::vector<int> differ;
  uint64_t passed = op.seq - 1;
  for (int member = 0; member < comm.size(); ++member) {
    Payload& heard = heard_[static_cast<size_t>(member)];
    if (member != comm.rank() && !talks_with(member)) {
      heard = Payload{};  // no tokens, no rows
      continue;
    }
    heard = member == comm.rank() ? mine : board_->read(member, op.seq);
    const uint64_t finished = std::min(heard[ep_record::finished], op.seq - 1);  // nobody can be further
    board_->learn(member, finished);
    passed = std::min(passed, finished);
    if (heard[ep_record::kind] != mine[ep_record::kind] ||
        heard[ep_record::routing] != mine[ep_record::routing])
      differ.push_back(member);
  }
  passed_by_all_ = std::max(passed_by_all_, passed);
  if (differ.empty()) return;
  const auto describe = [](const Payload& record) {
    switch (record[ep_record::kind]) {
      case ep_record::dispatch:
        return std::string("a new dispatch");
      case ep_record::dispatch_again:
        return text("dispatch with the routing of call #", record[ep_record::routing]);
      case ep_record::combine:
        return text("combine of the result of dispatch #", record[ep_record::routing]);
      case ep_record::set_placement:
        return text("set_placement with ", named_by_digest(static_cast<int64_t>(record[ep_record::routing])));
      default:
        return std::string("something unknown");
    }
  };
  fail_mismatch(text("rank ", comm.job_rank(comm.rank()), " calls ", describe(mine), ", rank ",
                     comm.job_rank(differ[0]), " calls ", describe(heard_[static_cast<size_t>(differ[0])]),
                     "; all ranks must make the same calls on an ExpertParallel in the same order"),
                differ);
}

void ExpertParallel::fail_mismatch(const std::string& message, const std::vector<int>& members) const {
  Error error(Status::Mismatch, message, comm_->job_ranks(members));
  error.seen_by_all = shape_.token_ranks == 0;
  throw error;
}

// The one that was used last: its memory may still be in the caches. Nobody reads it any more when rows are written there,
// for whoever has sent the records of a call has finished the one before it.
ResultSlot& ExpertParallel::free_result() {
  ResultSlot* best = nullptr;
  for (auto& slot : memory_->results)
    // acquire: pairs with the release of Lease.
    if (!slot->leased.load(std::memory_order_acquire) && (!best || slot->used_by > best->used_by))
      best = slot.get();
  if (!best)
    fail(
        Status::OutOfMemory, "all ", memory_->results.size(),
        " results of this ExpertParallel are alive; release one and all that still uses its rows, or make it "
        "with results=",
        memory_->results.size() + 1);
  return *best;
}

void ExpertParallel::count_load(const Routing& routing) {
  for (int position = 0; position < placement_.positions(); ++position)
    if (const uint32_t pairs = routing.pairs_at(static_cast<size_t>(position)))
      load_[static_cast<size_t>(placement_.expert(position))] += pairs;
}

void ExpertParallel::set_placement(std::vector<int32_t> held, double timeout) {
  require_open();
  Placement next = placement_.holding(std::move(held));
  comm_->operate("set_placement", seq_, timeout, [&](Operation& op) {
    require_idle();
    Payload record{};
    record[ep_record::kind] = ep_record::set_placement;
    record[ep_record::routing] = next.digest();
    record[ep_record::finished] = board_->finished();
    publish(op, std::vector<Payload>(static_cast<size_t>(comm_->size()), record), {});
    hear(op, record);
    board_->finish(op.seq);
    if (next.digest() != placement_.digest()) ++placements_;
    placement_ = std::move(next);
  });
}

std::byte* ExpertParallel::input_buffer(int64_t tokens, double timeout) {
  require_open();
  if (tokens < 0 || tokens > shape_.max_tokens)
    fail(Status::InvalidArgument, "an input buffer for ", tokens,
         " tokens: expected 0 to max_tokens=", shape_.max_tokens);
  std::byte* out = nullptr;
  comm_->operate("input_buffer", side_calls_, timeout, [&](Operation& op) {
    PulledPiece& piece = memory_->input[input_turn_];
    require_unread(piece.used_by, "input buffer");
    op.phase("waiting for pulls");
    await_passed(op, piece.used_by);
    piece.memory.require(static_cast<uint64_t>(tokens) * shape_.row_bytes());
    input_turn_ = (input_turn_ + 1) % record_depth;
    out = piece.memory.base();
  });
  return out;
}

std::byte* ExpertParallel::output_buffer(Dispatched& result, double timeout) {
  require_open();
  require_ours(result);
  std::byte* out = nullptr;
  comm_->operate("output_buffer", side_calls_, timeout, [&](Operation& op) {
    ResultSlot& slot = result.lease->slot();
    require_unread(slot.used_by, "result");
    op.phase("waiting for pulls");
    await_passed(op, slot.used_by);
    slot.out.require(result.rows() * shape_.row_bytes());
    out = slot.out.base();
  });
  return out;
}

void ExpertParallel::close(const Communicator::Hold&) {
  if (closed_) return;
  closed_ = true;
  const bool started = pending_.has_value();
  pending_.reset();
  if (comm_->world().forked()) return;
  if (started) board_->finish(seq_);  // it pulls nothing any more: nobody need wait for that
  // Others may still pull from here in the last call. If one does not come to it in time, the memory is left to it:
  // correct in any case, only not reusable. After an error nobody knows who still comes, and nobody is waited for.
  memory_->still_pulled = true;
  struct AtLast {  // also when Ctrl-C ends the wait
    ExpertParallel& ep;
    ~AtLast() { ep.leave(); }
  } at_last{*this};
  XCCL_TEST_POINT("ep.closing");
  const Deadline deadline(comm_->broken() ? 0 : comm_->timeout());
  memory_->still_pulled = !comm_->drain([&] { return !in_use(); }, deadline);
}

}  // namespace xccl
