#include "group/communicator.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/machine.hpp"
#include "base/test_point.hpp"
#include "group/shrink.hpp"

namespace xccl {

std::shared_ptr<Communicator> Communicator::init(const JobSpec& spec, const Config& config,
                                                 AnnexBytes annex) {
  const Deadline deadline(config.startup_timeout);
  auto world = std::make_shared<World>(spec, config);
  std::shared_ptr<Communicator> comm(new Communicator(world, annex, Kind::whole));
  std::vector<int> everybody(static_cast<size_t>(spec.size));
  std::iota(everybody.begin(), everybody.end(), 0);
  comm->prepare(everybody);
  const Card mine = comm->card();
  std::vector<std::string> raw;
  try {
    raw = world->connect(std::string(reinterpret_cast<const char*>(&mine), sizeof mine), deadline);
  } catch (Error& error) {
    throw error.during("init", 1, "meeting");
  }
  std::vector<Card> cards(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) std::memcpy(&cards[i], raw[i].data(), sizeof(Card));
  comm->connect(cards, nullptr, 0);
  return comm;
}

std::shared_ptr<Communicator> Communicator::make(Communicator& parent,
                                                 const std::vector<int>& members_of_parent) {
  std::shared_ptr<Communicator> comm(new Communicator(parent.world_, parent.annex_bytes_, Kind::part));
  comm->prepare(parent.job_ranks(members_of_parent));
  return comm;
}

Communicator::Communicator(std::shared_ptr<World> world, AnnexBytes annex, Kind kind)
    : world_(std::move(world)),
      trace_(world_->trace()),
      annex_bytes_(annex),
      kind_(kind),
      shrinking_(std::make_unique<Shrinking>(*this)) {
  world_->enrol();
}

Communicator::~Communicator() {
  // A communicator that Python forgot ends like a closed one, without waiting. A rank that is gone in the middle of a
  // call is known by its process.
  if (closed_ || world_->forked()) return;
  if (board_) {
    leave_world(false);
    return;
  }
  // It never was one here: perhaps there was no room for its lines. But others may have its card, and wait for it.
  if (block_) leave_seat();
  world_->close_one();
}

void Communicator::prepare(const std::vector<int>& members) {
  members_ = members;
  const auto count = static_cast<int>(members.size());
  layout_.emplace(count, annex_bytes_(count));
  block_ = world_->allocate_lines(layout_->bytes);
  // Nobody knows the place yet; the card that names it is what publishes this.
  seat().state.store(static_cast<uint64_t>(RankState::running), std::memory_order_relaxed);
  waiter_.emplace(kind_ == Kind::part ? seat().doorbell : world_->bell().doorbell, world_->bell().alarm,
                  world_->wait_log(),
                  WaitPolicy::choose(world_->size(), usable_cores(), world_->config().spin_us));
  try {
    scratch_ = Scratch(world_->provider(), count);
  } catch (...) {
    unmake_lines();
    throw;
  }
}

uint64_t Communicator::control_bytes(int ranks, uint64_t annex_bytes) {
  return lines_offset(ranks) + CommunicatorLayout(ranks, annex_bytes).bytes;
}

std::vector<int> Communicator::job_ranks(const std::vector<int>& members) const {
  std::vector<int> out;
  for (const int member : members) out.push_back(job_rank(member));
  return out;
}

void Communicator::connect(const std::vector<Card>& cards, std::shared_ptr<Communicator> parent,
                           uint64_t id) {
  group_.provider = &world_->provider();
  group_.own = world_->own_control();
  group_.self_rank = world_->rank();
  std::vector<uint64_t> board_offsets;
  for (size_t member = 0; member < members_.size(); ++member) {
    if (members_[member] == world_->rank()) group_.self = static_cast<int>(member);
    group_.controls.push_back(world_->control(members_[member]));
    const uint64_t block = cards[member].block, segment = group_.controls.back().bytes;
    if (block % cache_line != 0 || block > segment || layout_->bytes > segment - block)
      fail(Status::Failure, "rank ", members_[member], " sent a malformed card");
    group_.doorbells.push_back(kind_ == Kind::part ? block + offsetof(Seat, doorbell) : doorbell_offset);
    blocks_.push_back(block);
    board_offsets.push_back(block + layout_->board);
    scratch_keys_.push_back(cards[member].scratch);
  }
  peer_scratch_.resize(members_.size());
  board_.emplace(group_, board_offsets);
  id_ = id;
  parent_ = std::move(parent);
  if (parent_) parent_->open(id_);
  board_->finish(0);
}

uint64_t Communicator::seat_word(int member, uint64_t offset) {
  return world_->provider().fetch(group_.controls[static_cast<size_t>(member)],
                                  blocks_[static_cast<size_t>(member)] + offset);
}

void Communicator::announce_failure(const std::string& why, RankState state) {
  auto& failure = *reinterpret_cast<FailureText*>(world_->own_control() + block_ + layout_->failure);
  const size_t length = std::min(why.size(), sizeof failure.text);
  std::memcpy(failure.text, why.data(), length);
  failure.length = length;
  // release: publishes the text. Those who are told next find it here.
  seat().state.store(static_cast<uint64_t>(state), std::memory_order_release);
  world_->announce_failure();
  wake_members();
}

// An announcement wakes those that sleep in the communicator of all ranks; these may sleep in this one.
void Communicator::wake_members() {
  if (kind_ == Kind::whole) return;
  for (size_t member = 0; member < group_.doorbells.size(); ++member)
    if (static_cast<int>(member) != rank())
      world_->provider().notify(group_.controls[member], group_.doorbells[member], -1);
}

// Takes no part any more, in shrink either.
void Communicator::leave_seat() {
  // Relaxed: only this rank writes it.
  const auto state = static_cast<RankState>(seat().state.load(std::memory_order_relaxed));
  const bool failed = state == RankState::failed || state == RankState::left;
  // release: everything this rank published before is there for who sees that it has gone.
  seat().state.store(static_cast<uint64_t>(failed ? RankState::left : RankState::closed),
                     std::memory_order_release);
}

std::string Communicator::failure_text(int member) {
  FailureText failure{};
  const Transfer transfer{&failure, blocks_[static_cast<size_t>(member)] + layout_->failure, sizeof failure};
  world_->provider().get(group_.controls[static_cast<size_t>(member)], &transfer, 1);
  world_->provider().quiet();
  return std::string(failure.text, std::min<uint64_t>(failure.length, sizeof failure.text));
}

void Communicator::set_engine(Engine* engine) {
  if (engine_) world_->remove_engine(engine_);
  engine_ = engine;
  if (engine_) world_->add_engine(engine_);
}

bool Communicator::spins_freely() const { return world_->size() <= usable_cores(); }

void Communicator::progress(bool patient) {
  world_->provider().progress();
  if (engine_ && (patient || engine_->unfinished())) engine_->advance();
  if (patient) world_->advance_others(engine_);
}

uint64_t Communicator::barrier_word(int member, int round) const {
  return blocks_[static_cast<size_t>(member)] + layout_->barrier + static_cast<uint64_t>(round) * cache_line;
}

const RemoteRegion& Communicator::peer_scratch(int member) {
  auto& region = peer_scratch_[static_cast<size_t>(member)];
  if (!region)
    region = world_->provider().attach(job_rank(member), scratch_keys_[static_cast<size_t>(member)]);
  return *region;
}

void Communicator::hold(const char* op) {
  const LongWait long_wait;  // who makes progress may need the GIL, to let go of an array
  for (;; sched_yield()) {
    Use was = Use::none;
    if (use_.compare_exchange_strong(was, Use::call, std::memory_order_acquire)) return;
    if (world_->forked()) require_usable();  // the thread that holds it is not in this process
    if (was == Use::call)
      fail(Status::InvalidArgument, op,
           ": another thread is inside a call on this communicator; use one communicator per thread");
  }
}

void Communicator::require_open() const {
  if (world_->forked())
    fail(Status::Closed, "this process is a fork of rank ", world_->rank(),
         " and cannot use its communicator; join again in the child");
  if (closed_) fail(Status::Closed, "the communicator is closed");
}

void Communicator::require_usable() const {
  require_open();
  if (!broken()) return;
  Error again(broken_->status, text("the communicator has failed before: ", broken_->what()), broken_->ranks);
  throw again.during(broken_->op.empty() ? "abort" : broken_->op.c_str(), broken_->seq,
                     broken_->phase.c_str());
}

void Communicator::require_not_left() const {
  if (left_) fail(Status::Closed, "this rank has aborted the communicator and is none of its survivors");
}

void Communicator::begin_among_survivors(Operation& op) {
  require_open();
  require_not_left();
  show(op);
}

void Communicator::begin(Operation& op) {
  // First: a call that is refused must not look to the others as if this rank had come to it.
  require_fine(op.name, op.seq);
  show(op);
}

void Communicator::show(Operation& op) {
  world_->enter(op.name, op.seq, size());
  op.shown_ = true;
}

void Communicator::require_fine(const char* op, uint64_t seq) {
  require_usable();
  if (world_->bell().alarm.load(std::memory_order_acquire) == 0 && world_->news() == seen_news_) return;
  try {
    alarmed();
  } catch (Error& error) {
    end(error.during(op, seq, "entering"));
    throw;
  }
}

void Communicator::leave_by(const Error& error, const Operation& op) {
  // What it was pulling goes where the caller said, and that memory is the caller's again once the call has ended.
  world_->provider().quiet();
  if (op.shown_) world_->leave();
  if (op.published()) end(error);
}

// A member that gave up in this very call may have written over, or given back, what this rank was still pulling. It
// raised the alarm before its call returned: so if there is none now, all that was pulled is right.
void Communicator::require_trust() {
  if (!world_->no_news_since(seen_news_)) alarmed();
}

void Communicator::end(const Error& cause) {
  const std::lock_guard lock(end_mutex_);
  if (broken_) return;
  broken_ = cause;
  is_broken_.store(true, std::memory_order_release);
  switch (cause.status) {
    case Status::PeerLost:
    case Status::PeerFailed:
      // The source tells it too; but all must know before this rank's caller touches what others pull.
      for (const int rank : cause.ranks) world_->relay(rank);
      wake_members();
      return;
    case Status::Closed:  // who needs a rank that has closed finds out by itself
      return;
    case Status::Mismatch:  // who disagrees with one rank sees it in that rank's own record
      if (cause.seen_by_all) return;
      [[fallthrough]];
    default:
      announce_failure(cause.what(), RankState::failed);
  }
}

void Communicator::abort(const std::string& reason) {
  if (closed_ || world_->forked()) return;
  if (!broken()) {
    // Often what makes this rank give up is another's failure, learnt of elsewhere: then that is the cause here, too.
    try {
      world_->hear();
      world_->look();
      raise_if_member_down();
    } catch (Error& error) {
      end(error.during("abort", 0, ""));
    }
  }
  const std::lock_guard lock(end_mutex_);
  if (left_.exchange(true)) return;
  // The others know a cause already, or will: this rank only leaves, and is no cause of anything.
  if (broken_) return leave_seat();
  broken_ = Error(Status::Failure, text("this rank has aborted the communicator: ", reason));
  is_broken_.store(true, std::memory_order_release);
  announce_failure(reason, RankState::left);
}

void Communicator::alarmed() {
  world_->hear();
  const uint64_t news = world_->news();
  raise_if_member_down();
  seen_news_ = news;
}

bool Communicator::somebody_is_down() {
  for (int member = 0; member < size(); ++member) {
    const PeerFlag flag = world_->flag(job_rank(member));
    if (member == rank() || flag == PeerFlag::fine) continue;
    const RankState state = this->state(member);
    if (flag == PeerFlag::dead || state == RankState::failed || state == RankState::left) return true;
  }
  return false;
}

void Communicator::raise_if_member_down() {
  std::vector<int> dead, failed;
  std::string why;  // of the first that failed
  for (int member = 0; member < size(); ++member) {
    const int rank = job_rank(member);
    if (member == this->rank() || world_->flag(rank) == PeerFlag::fine) continue;
    if (const RankState state = this->state(member); state == RankState::failed || state == RankState::left) {
      if (failed.empty()) why = failure_text(member);
      failed.push_back(rank);
    } else if (world_->flag(rank) == PeerFlag::dead) {
      dead.push_back(rank);
    }
  }
  if (!dead.empty())
    throw Error(Status::PeerLost, text(rank_list(dead), dead.size() == 1 ? " has died" : " have died"), dead);
  if (!failed.empty()) throw Error(Status::PeerFailed, text(rank_list(failed), " failed: ", why), failed);
}

void Communicator::keep(int for_rank, bool (*ready)(void*), void* context) {
  (void)for_rank;
  if (broken()) require_usable();  // another thread has called abort()
  // The order matters. Who is closed first: a rank that failed says so before it closes. Then what the others say: a
  // rank that told its error before its process ended has failed, not died. And what a rank published before it went
  // still counts: the caller may need no more than that.
  std::vector<int> closed;
  for (int member = 0; done_ && member < size(); ++member)
    if (member != rank() && state(member) == RankState::closed) closed.push_back(member);
  world_->hear();
  world_->look();
  if (ready(context)) return;
  raise_if_member_down();
  std::vector<int> missing;
  for (const int member : closed)
    if (!done_(member)) missing.push_back(job_rank(member));
  if (missing.empty() || ready(context)) return;
  throw Error(Status::Closed,
              text(rank_list(missing),
                   missing.size() == 1 ? " has closed its communicator" : " have closed their communicators",
                   " and will not take part"),
              missing);
}

// Who is late need not be who will store the word.
int Communicator::awaited(int for_rank) {
  if (!done_) return for_rank;
  if (awaited_ >= 0 && !done_(awaited_)) return job_rank(awaited_);
  for (int step = 1; step < size(); ++step)
    if (const int member = (rank() + step) % size(); !done_(member)) return job_rank(member);
  return awaited_ >= 0 ? job_rank(awaited_) : -1;
}

std::vector<int> Communicator::missing() {
  std::vector<int> out;
  for (int member = 0; done_ && member < size(); ++member)
    if (member != rank() && !done_(member)) out.push_back(job_rank(member));
  return out;
}

std::vector<WaitCount> Communicator::wait_stats() {
  std::vector<WaitCount> out;
  for (const int waiter : members_)
    for (const int late : members_) out.push_back(world_->waited(waiter, late));
  return out;
}

bool Communicator::poll(Operation& op, int member, const std::function<bool()>& ready,
                        const std::function<void()>& look) {
  if (ready()) return true;
  uint64_t last_vigil = now_ns();
  const int late = member < 0 ? -1 : job_rank(member);
  const LoggedWait logged(world_->wait_log(), last_vigil, op.phase(), late);
  Span span(trace_, Trace::Event::Kind::wait, op.phase(), Trace::unknown, late);
  for (long pause_ns = 0;; pause_ns = std::min(pause_ns * 2 + 1'000, 1'000'000L)) {
    if (ready()) return true;
    const timespec pause{0, pause_ns};
    pause_ns < 50'000 ? sched_yield() : nanosleep(&pause, nullptr);
    if (now_ns() - last_vigil < 10'000'000) continue;
    last_vigil = now_ns();
    if (interrupt_check) interrupt_check();
    progress(true);
    look();
    if (op.deadline.passed()) return ready();
  }
}

bool Communicator::takes_part(int member) {
  if (member != rank() && world_->flag(job_rank(member)) == PeerFlag::dead) return false;
  const RankState now = state(member);
  return now == RankState::running || now == RankState::failed;
}

// Of a collective's number, so that it is the same on all members; and a new one, where shrinking has used that.
uint64_t Communicator::next_object() const {
  const std::lock_guard lock(objects_mutex_);
  return std::max(collective_seq_, newest_object_ + 1);
}

uint64_t Communicator::new_object() {
  const uint64_t id = next_object();
  const std::lock_guard lock(objects_mutex_);
  return newest_object_ = id;
}

void Communicator::open(uint64_t id) {
  const std::lock_guard lock(objects_mutex_);
  open_objects_.insert(id);
  newest_object_ = std::max(newest_object_, id);
}

uint64_t Communicator::oldest_open() const {
  const std::lock_guard lock(objects_mutex_);
  return *open_objects_.begin();
}

// A sub-communicator is closed for its parent when all that was made on it is closed too. Nobody makes anything on it
// any more by which to learn that all have closed that: so what it left goes with the rest, all at once.
void Communicator::retire(uint64_t id, const Remains& remains) {
  Remains all;
  {
    const std::lock_guard lock(objects_mutex_);
    open_objects_.erase(id);
    retired_[id] = remains;
    if (!open_objects_.empty() || !id_) return;
    for (const auto& [_, some] : retired_) {
      all.lines.insert(all.lines.end(), some.lines.begin(), some.lines.end());
      all.regions.insert(all.regions.end(), some.regions.begin(), some.regions.end());
    }
    retired_.clear();
  }
  parent_->retire(id_, all);
}

void Communicator::free_retired(uint64_t all_closed_before) {
  const std::lock_guard lock(objects_mutex_);
  for (auto entry = retired_.begin(); entry != retired_.end() && entry->first < all_closed_before;
       entry = retired_.erase(entry)) {
    for (const Lines& lines : entry->second.lines) world_->free_lines(lines.offset, lines.bytes);
    for (const Region& region : entry->second.regions) world_->provider().free(region);
  }
}

void Communicator::raise_timeout(const Operation& op, const std::vector<bool>& done, int awaited) {
  std::vector<int> late;
  std::string details;
  // All may have done their part by their own account, as a rank stopped inside a barrier has: then it is the one that
  // was waited for.
  const bool nobody = std::find(done.begin(), done.end(), false) == done.end();
  for (int member = 0; member < size(); ++member) {
    if (done[static_cast<size_t>(member)] && !(nobody && member == awaited)) continue;
    late.push_back(job_rank(member));
    if (late.size() <= 4)
      details += text(details.empty() ? "" : "; ", "rank ", job_rank(member), ": ",
                      world_->whereabouts(job_rank(member)));
  }
  throw Error(
      Status::Timeout,
      text("no answer from ", rank_list(late), " within ", op.deadline.seconds(), " s (", details, ")"),
      late);
}

void Communicator::close(const Hold&) {
  if (closed_) return;
  closed_ = true;
  if (world_->forked()) return;
  struct AtLast {  // also when Ctrl-C ends the wait
    Communicator& comm;
    bool all_passed = false;
    ~AtLast() { comm.leave_world(all_passed); }
  } at_last{*this};
  XCCL_TEST_POINT("close.begun");
  if (broken()) return;
  // Others may still read this rank's scratch. The bound is the deadline of any other call.
  const Deadline deadline(timeout());
  bool passed = true;
  for (int member = 0; member < size(); ++member) {
    if (member == rank()) continue;
    passed &= drain([&] { return board_->passed(member, collective_seq_) || !running(member); }, deadline);
  }
  at_last.all_passed = passed;
  XCCL_TEST_POINT("close.drained");
}

void Communicator::unmake_lines() { world_->free_lines(std::exchange(block_, 0), layout_->bytes); }

void Communicator::unmake() {
  unmake_lines();
  world_->provider().free(scratch_.region());
}

Communicator::Remains Communicator::forsake() {
  leave_seat();
  return {{{block_, layout_->bytes}}, {scratch_.region()}};
}

void Communicator::leave_world(bool scratch_is_free) {
  {
    const std::lock_guard lock(end_mutex_);  // abort() is called in any thread
    leave_seat();
  }
  XCCL_TEST_POINT("close.left");
  Remains remains = shrinking_->abandon();
  remains.lines.push_back({block_, layout_->bytes});
  if (scratch_is_free)
    world_->provider().free(scratch_.region());
  else
    remains.regions.push_back(scratch_.region());
  if (left_behind_) remains.regions.push_back(*left_behind_);
  retire(itself, remains);
  world_->close_one();
}

}  // namespace xccl
