#include "group/communicator.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace xccl {

struct Communicator::Card {
  uint64_t board_offset, barrier_offset;
  RegionKey scratch;
};

namespace {
constexpr int most_barrier_rounds = 32;  // 2^32 ranks
}

std::shared_ptr<Communicator> Communicator::init(const JobSpec& spec, const Config& config) {
  const Deadline deadline(config.startup_timeout);
  auto world = std::make_shared<World>(spec, config);
  std::shared_ptr<Communicator> comm(new Communicator(world));
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
  comm->connect(cards);
  return comm;
}

Communicator::Communicator(std::shared_ptr<World> world) : world_(std::move(world)) {}

Communicator::~Communicator() {
  // A communicator that Python forgot ends like a closed one, without waiting. A rank that is gone in the middle of a
  // call is known by its process.
  if (!closed_) world_->close();
}

void Communicator::prepare(const std::vector<int>& members) {
  members_ = members;
  board_offset_ = world_->allocate_lines(Board::bytes(static_cast<int>(members.size())));
  barrier_offset_ = world_->allocate_lines(most_barrier_rounds * cache_line);
  scratch_ = Scratch(world_->provider(), static_cast<int>(members.size()));
}

uint64_t Communicator::control_bytes(int ranks) {
  return round_up(peer_flag_offset(ranks), cache_line) + Board::bytes(ranks) +
         most_barrier_rounds * cache_line;
}

Communicator::Card Communicator::card() const {
  return {board_offset_, barrier_offset_, scratch_.region().key};
}

void Communicator::connect(const std::vector<Card>& cards) {
  group_.provider = &world_->provider();
  group_.own = world_->own_control();
  group_.self_rank = world_->rank();
  std::vector<uint64_t> board_offsets;
  for (size_t member = 0; member < members_.size(); ++member) {
    if (members_[member] == world_->rank()) group_.self = static_cast<int>(member);
    group_.controls.push_back(world_->control(members_[member]));
    const Card& card = cards[member];
    const uint64_t segment = group_.controls.back().bytes;
    const bool aligned = card.board_offset % cache_line == 0 && card.barrier_offset % cache_line == 0;
    if (!aligned || card.board_offset > segment - Board::bytes(size()) ||
        card.barrier_offset > segment - most_barrier_rounds * cache_line)
      fail(Status::Failure, "rank ", members_[member], " sent a malformed card");
    board_offsets.push_back(card.board_offset);
    barrier_offsets_.push_back(card.barrier_offset);
    scratch_keys_.push_back(card.scratch);
  }
  peer_scratch_.resize(members_.size());
  board_.emplace(group_, board_offsets);
  board_->finish(0);
}

uint64_t Communicator::barrier_word(int member, int round) const {
  return barrier_offsets_[static_cast<size_t>(member)] + static_cast<uint64_t>(round) * cache_line;
}

const RemoteRegion& Communicator::peer_scratch(int member) {
  auto& region = peer_scratch_[static_cast<size_t>(member)];
  if (!region)
    region = world_->provider().attach(world_rank(member), scratch_keys_[static_cast<size_t>(member)]);
  return *region;
}

Communicator::Hold::Hold(Communicator& comm, const char* op) : comm_(comm) {
  if (comm.busy_.test_and_set(std::memory_order_acquire))
    fail(Status::InvalidArgument, op,
         ": another thread is inside a call on this communicator; use one communicator per thread");
}

void Communicator::require_usable() const {
  if (world_->forked())
    fail(Status::Closed, "this process is a fork of rank ", world_->rank(),
         " and cannot use its communicator; call xccl.init() in the child");
  if (closed_) fail(Status::Closed, "the communicator is closed");
  if (!broken_) return;
  Error again(broken_->status, text("the communicator has failed before: ", broken_->what()), broken_->ranks);
  throw again.during(broken_->op.empty() ? "abort" : broken_->op.c_str(), broken_->seq,
                     broken_->phase.c_str());
}

void Communicator::begin(const Operation& op) {
  world_->enter(op.name, op.seq);
  if (world_->bell().alarm.load(std::memory_order_acquire) == 0) return;
  try {
    alarmed();
  } catch (Error& error) {
    world_->leave();
    end(error.during(op.name, op.seq, "entering"));
    throw;
  }
}

void Communicator::leave_by(const Error& error, const Operation& op) {
  world_->leave();
  if (op.published()) end(error);
}

// A member that gave up in this very call may have written over, or given back, what this rank was still pulling. It
// raised the alarm before its call returned: so if there is none now, all that was pulled is right.
void Communicator::require_trust() {
  // acq_rel on a read-modify-write: the pulls stay before it. (A fence would do; ThreadSanitizer does not see those.)
  if (world_->bell().alarm.fetch_add(0, std::memory_order_acq_rel) != 0 || world_->anybody_down()) alarmed();
}

void Communicator::end(const Error& cause) {
  if (broken_) return;
  broken_ = cause;
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
      world_->announce_failure(cause.what());
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
  for (const int rank : members_) {
    if (rank == world_->rank()) continue;
    if (world_->flag(rank) == PeerFlag::dead) dead.push_back(rank);
    if (world_->flag(rank) == PeerFlag::failed) failed.push_back(rank);
  }
  if (!dead.empty())
    throw Error(Status::PeerLost, text(rank_list(dead), dead.size() == 1 ? " has died" : " have died"), dead);
  if (!failed.empty())
    throw Error(Status::PeerFailed, text(rank_list(failed), " failed: ", world_->failure_text(failed[0])),
                failed);
}

void Communicator::keep(int for_rank, bool (*ready)(void*), void* context) {
  (void)for_rank;
  // The order matters. Who is closed first: a rank that failed says so before it closes. Then what the others say: a
  // rank that told its error before its process ended has failed, not died. And what a rank published before it went
  // still counts: the caller may need no more than that.
  std::vector<int> closed;
  for (int member = 0; done_ && member < size(); ++member)
    if (member != rank() && world_->state(world_rank(member)) == RankState::closed) closed.push_back(member);
  world_->hear();
  world_->look();
  if (ready(context)) return;
  raise_if_member_down();
  std::vector<int> missing;
  for (const int member : closed)
    if (!done_(member)) missing.push_back(world_rank(member));
  if (missing.empty() || ready(context)) return;
  throw Error(Status::Closed,
              text(rank_list(missing),
                   missing.size() == 1 ? " has closed its communicator" : " have closed their communicators",
                   " and will not take part"),
              missing);
}

bool Communicator::poll_remote(Operation& op, const std::function<bool()>& ready) {
  uint64_t last_vigil = now_ns();
  for (long pause_ns = 0;; pause_ns = std::min(pause_ns * 2 + 1'000, 1'000'000L)) {
    if (ready()) return true;
    const timespec pause{0, pause_ns};
    pause_ns < 50'000 ? sched_yield() : nanosleep(&pause, nullptr);
    if (now_ns() - last_vigil < 10'000'000) continue;
    last_vigil = now_ns();
    if (interrupt_check) interrupt_check();
    world_->provider().progress();
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
  return open_objects_.empty() ? UINT64_MAX : *open_objects_.begin();
}

void Communicator::retire(uint64_t id, uint64_t lines_offset, uint64_t lines_bytes) {
  const std::lock_guard lock(objects_mutex_);
  open_objects_.erase(id);
  retired_[id] = {lines_offset, lines_bytes};
}

void Communicator::free_retired(uint64_t all_closed_before) {
  const std::lock_guard lock(objects_mutex_);
  for (auto entry = retired_.begin(); entry != retired_.end() && entry->first < all_closed_before;
       entry = retired_.erase(entry))
    world_->free_lines(entry->second.offset, entry->second.bytes);
}

void Communicator::raise_timeout(const Operation& op, const std::vector<bool>& done, int awaited) {
  std::vector<int> late;
  std::string details;
  // All may have done their part by their own account, as a rank stopped inside a barrier has: then it is the one that
  // was waited for.
  const bool nobody = std::find(done.begin(), done.end(), false) == done.end();
  for (int member = 0; member < size(); ++member) {
    if (done[static_cast<size_t>(member)] && !(nobody && member == awaited)) continue;
    late.push_back(world_rank(member));
    if (late.size() <= 4)
      details += text(details.empty() ? "" : "; ", "rank ", world_rank(member), ": ",
                      world_->whereabouts(world_rank(member)));
  }
  throw Error(
      Status::Timeout,
      text("no answer from ", rank_list(late), " within ", op.deadline.seconds(), " s (", details, ")"),
      late);
}

void Communicator::close() {
  if (closed_) return;
  const Hold hold(*this, "close");
  closed_ = true;
  if (world_->forked() || group_.controls.empty()) return;
  struct AtLast {  // also when Ctrl-C ends the wait
    World& world;
    ~AtLast() { world.close(); }
  } at_last{*world_};
  if (broken_) return;
  // Others may still read this rank's scratch. The bound is the deadline of any other call.
  const Deadline deadline(timeout());
  for (int member = 0; member < size(); ++member) {
    if (member == rank()) continue;
    world_->drain([&] { return board_->passed(member, collective_seq_) || !running(member); }, deadline);
  }
}

}  // namespace xccl
