#include "group/communicator.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/machine.hpp"

namespace xccl {

std::shared_ptr<Communicator> Communicator::init(const JobSpec& spec, const Config& config,
                                                 AnnexBytes annex) {
  const Deadline deadline(config.startup_timeout);
  auto world = std::make_shared<World>(spec, config);
  std::shared_ptr<Communicator> comm(new Communicator(world, annex, nullptr));
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
  comm->connect(cards, 0);
  return comm;
}

std::shared_ptr<Communicator> Communicator::make(std::shared_ptr<Communicator> parent,
                                                 const std::vector<int>& members_of_parent) {
  std::shared_ptr<Communicator> comm(new Communicator(parent->world_, parent->annex_bytes_, parent));
  comm->prepare(parent->job_ranks(members_of_parent));
  return comm;
}

Communicator::Communicator(std::shared_ptr<World> world, AnnexBytes annex,
                           std::shared_ptr<Communicator> parent)
    : world_(std::move(world)), trace_(world_->trace()), annex_bytes_(annex), parent_(std::move(parent)) {
  world_->enrol();
}

Communicator::~Communicator() {
  // A communicator that Python forgot ends like a closed one, without waiting. A rank that is gone in the middle of a
  // call is known by its process.
  if (closed_ || world_->forked()) return;
  if (board_)
    leave_world(false);
  else
    world_->close_one();  // it never was one: perhaps there was no room for its lines
}

void Communicator::prepare(const std::vector<int>& members) {
  members_ = members;
  const auto count = static_cast<int>(members.size());
  layout_.emplace(count, annex_bytes_(count));
  block_ = world_->allocate_lines(layout_->bytes);
  // Nobody knows the place yet; the card that names it is what publishes this.
  seat().state.store(static_cast<uint64_t>(RankState::running), std::memory_order_relaxed);
  waiter_.emplace(parent_ ? seat().doorbell : world_->bell().doorbell, world_->bell().alarm,
                  world_->wait_log(),
                  WaitPolicy::choose(world_->size(), usable_cores(), world_->config().spin_us));
  scratch_ = Scratch(world_->provider(), count);
}

uint64_t Communicator::control_bytes(int ranks, uint64_t annex_bytes) {
  return lines_offset(ranks) + CommunicatorLayout(ranks, annex_bytes).bytes;
}

std::vector<int> Communicator::job_ranks(const std::vector<int>& members) const {
  std::vector<int> out;
  for (const int member : members) out.push_back(job_rank(member));
  return out;
}

void Communicator::connect(const std::vector<Card>& cards, uint64_t id) {
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
    group_.doorbells.push_back(parent_ ? block + offsetof(Seat, doorbell) : doorbell_offset);
    blocks_.push_back(block);
    board_offsets.push_back(block + layout_->board);
    scratch_keys_.push_back(cards[member].scratch);
  }
  peer_scratch_.resize(members_.size());
  board_.emplace(group_, board_offsets);
  id_ = id;
  if (parent_) parent_->open(id_);
  board_->finish(0);
}

uint64_t Communicator::seat_word(int member, uint64_t offset) {
  return world_->provider().fetch(group_.controls[static_cast<size_t>(member)],
                                  blocks_[static_cast<size_t>(member)] + offset);
}

void Communicator::announce_failure(const std::string& why) {
  auto& failure = *reinterpret_cast<FailureText*>(world_->own_control() + block_ + layout_->failure);
  failure.length = std::min(why.size(), sizeof failure.text);
  std::memcpy(failure.text, why.data(), failure.length);
  // release: publishes the text. Those who are told next find it here.
  seat().state.store(static_cast<uint64_t>(RankState::failed), std::memory_order_release);
  world_->announce_failure();
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

void Communicator::require_usable() const {
  if (world_->forked())
    fail(Status::Closed, "this process is a fork of rank ", world_->rank(),
         " and cannot use its communicator; join again in the child");
  if (closed_) fail(Status::Closed, "the communicator is closed");
  if (!broken()) return;
  Error again(broken_->status, text("the communicator has failed before: ", broken_->what()), broken_->ranks);
  throw again.during(broken_->op.empty() ? "abort" : broken_->op.c_str(), broken_->seq,
                     broken_->phase.c_str());
}

void Communicator::begin(const Operation& op) {
  // First: a call that is refused must not look to the others as if this rank had come to it.
  require_fine(op.name, op.seq);
  world_->enter(op.name, op.seq, size());
}

void Communicator::require_fine(const char* op, uint64_t seq) {
  require_usable();
  if (world_->bell().alarm.load(std::memory_order_acquire) == 0) return;
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
  world_->leave();
  if (op.published()) end(error);
}

// A member that gave up in this very call may have written over, or given back, what this rank was still pulling. It
// raised the alarm before its call returned: so if there is none now, all that was pulled is right.
void Communicator::require_trust() {
  if (!world_->all_fine()) alarmed();
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
      return;
    case Status::Mismatch:  // who disagrees with one rank sees it in that rank's own record
    case Status::Closed:    // and who needs a rank that has closed finds out by itself
      return;
    default:
      announce_failure(cause.what());
  }
}

void Communicator::abort(const std::string& reason) {
  if (closed_ || world_->forked()) return;
  end(Error(Status::Failure, reason));
}

void Communicator::alarmed() {
  world_->hear();
  raise_if_member_down();
}

void Communicator::raise_if_member_down() {
  std::vector<int> dead, failed;
  std::string why;  // of the first that failed
  for (int member = 0; member < size(); ++member) {
    const int rank = job_rank(member);
    if (member == this->rank() || world_->flag(rank) == PeerFlag::fine) continue;
    if (state(member) == RankState::failed) {
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

bool Communicator::poll_remote(Operation& op, int member, const std::function<bool()>& ready) {
  if (ready()) return true;
  uint64_t last_vigil = now_ns();
  const LoggedWait logged(world_->wait_log(), last_vigil, op.phase(), job_rank(member));
  Span span(trace_, Trace::Event::Kind::wait, op.phase(), Trace::unknown, job_rank(member));
  for (long pause_ns = 0;; pause_ns = std::min(pause_ns * 2 + 1'000, 1'000'000L)) {
    if (ready()) return true;
    const timespec pause{0, pause_ns};
    pause_ns < 50'000 ? sched_yield() : nanosleep(&pause, nullptr);
    if (now_ns() - last_vigil < 10'000'000) continue;
    last_vigil = now_ns();
    if (interrupt_check) interrupt_check();
    progress(true);
    alarmed();
    world_->look();
    raise_if_member_down();
    if (op.deadline.passed()) return ready();
  }
}

void Communicator::open(uint64_t id) {
  const std::lock_guard lock(objects_mutex_);
  open_objects_.insert(id);
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
  if (broken()) return;
  // Others may still read this rank's scratch. The bound is the deadline of any other call.
  const Deadline deadline(timeout());
  bool passed = true;
  for (int member = 0; member < size(); ++member) {
    if (member == rank()) continue;
    passed &=
        world_->drain([&] { return board_->passed(member, collective_seq_) || !running(member); }, deadline);
  }
  at_last.all_passed = passed;
}

void Communicator::leave_world(bool scratch_is_free) {
  // release: everything this rank published before is there for who sees that it closed.
  if (state(rank()) != RankState::failed)
    seat().state.store(static_cast<uint64_t>(RankState::closed), std::memory_order_release);
  Remains remains{{{block_, layout_->bytes}}, {}};
  if (scratch_is_free)
    world_->provider().free(scratch_.region());
  else
    remains.regions.push_back(scratch_.region());
  if (left_behind_) remains.regions.push_back(*left_behind_);
  retire(itself, remains);
  world_->close_one();
}

}  // namespace xccl
