#include "group/world.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>

#include "base/error.hpp"
#include "base/machine.hpp"
#include "base/test_point.hpp"
#include "group/bootstrap.hpp"

namespace xccl {
namespace {

// Counts the forks that led to this process. The child of a fork shares our memory but is no rank.
std::atomic<int> fork_count{0};

int current_fork_epoch() {
  static const bool watching = [] {
    pthread_atfork(nullptr, nullptr, [] { fork_count.fetch_add(1, std::memory_order_relaxed); });
    return true;
  }();
  (void)watching;
  return fork_count.load(std::memory_order_relaxed);
}

Region allocate_control(Provider& provider, int size) {
  Region region = provider.allocate(control_segment_bytes);
  provider.commit(region, 0, lines_offset(size));
  new (region.base) ControlFixed();
  return region;
}

void check_spec(const JobSpec& spec) {
  if (spec.size < 1) fail(Status::InvalidArgument, "a job of ", spec.size, " ranks: expected at least 1");
  if (spec.rank < 0 || spec.rank >= spec.size)
    fail(Status::InvalidArgument, "rank ", spec.rank, " of ", spec.size, ": expected 0 to ", spec.size - 1);
  if (spec.job.empty())
    fail(Status::InvalidArgument,
         "job is \"\": expected a name that all ranks of the job, and no others, use");
}

// Of no other process that lives, nor again in this one; never 0.
uint64_t unique_number() {
  return (now_ns() * 0x9e3779b97f4a7c15u ^ static_cast<uint64_t>(getpid()) << 1) | 1;
}

// A program may join several times, one after the other or at once: all ranks count alike.
uint64_t next_join() {
  static std::atomic<uint64_t> joined{0};
  return joined.fetch_add(1, std::memory_order_relaxed);  // relaxed: only has to count
}

const JobSpec& checked(const JobSpec& spec) {
  check_spec(spec);
  return spec;
}

}  // namespace

World::World(const JobSpec& spec, const Config& config)
    : spec_(checked(spec)),
      config_(config),
      trace_(Trace::open(config.trace, spec.rank, spec.size, spec.job)),
      fork_epoch_(current_fork_epoch()),
      provider_(make_provider(spec, config)),
      heap_(*provider_),
      control_(allocate_control(*provider_, spec.size)),
      lines_(control_.bytes),
      wait_log_(fixed().wait, reinterpret_cast<PeerWait*>(control_.base + peer_waits_offset(spec.size)),
                spec.rank),
      known_(static_cast<size_t>(spec.size)) {
  const uint64_t fixed_bytes = lines_offset(spec.size);
  lines_.allocate(fixed_bytes, cache_line);
  lines_committed_ = round_up(fixed_bytes, 4096);
  write_header();
  heap_.show_bytes(&fixed().status.array_bytes);
}

void World::write_header() {
  ControlHeader& header = fixed().header;
  header.magic = control_magic;
  header.version = layout_version;
  header.size = static_cast<uint32_t>(spec_.size);
  header.rank = spec_.rank;
  header.header_bytes = static_cast<uint32_t>(peer_flags_offset);
  header.segment_bytes = control_.bytes;
  header.pid = static_cast<uint64_t>(getpid());
  fixed().status.state.store(static_cast<uint64_t>(RankState::running), std::memory_order_relaxed);
  // release: whoever sees ready sees the header and the status.
  header.ready.store(control_magic, std::memory_order_release);
}

namespace {
// What a rank says of itself; then come the card of the layer above and the provider's words.
struct Introduction {
  RegionKey control;
  uint64_t meeting;  // rank 0's becomes that of the job
};
}  // namespace

std::vector<std::string> World::connect(const std::string& card, const Deadline& deadline) {
  Parcel mine = provider_->invite();
  const bool processes = !mine.fds.empty();
  const Introduction introduction{control_.key, unique_number()};
  mine.bytes.insert(0, card);
  mine.bytes.insert(0, reinterpret_cast<const char*>(&introduction), sizeof introduction);
  if (processes) mine.fds.push_back(Liveness::open_self());
  // Not before: a call that was refused, which no other rank has seen, is made again.
  if (spec_.numbered) spec_.job += text(".", next_join());
  write_job_name();
  enter("init", 1, size());
  std::optional<LoggedWait> meeting(std::in_place, wait_log_, now_ns(), "meeting", -1);

  auto parcels = processes ? bootstrap_unix(spec_, std::move(mine), deadline)
                           : bootstrap_local(spec_, std::move(mine), deadline);
  meeting.reset();

  XCCL_TEST_POINT("attach.met");
  std::vector<std::string> cards;
  std::vector<Fd> pidfds;
  for (int rank = 0; rank < spec_.size; ++rank) {
    Parcel& parcel = parcels[static_cast<size_t>(rank)];
    Introduction theirs;
    if (parcel.bytes.size() < sizeof theirs + card.size())
      fail(Status::Failure, "rank ", rank, " sent a malformed invitation");
    std::memcpy(&theirs, parcel.bytes.data(), sizeof theirs);
    if (rank == 0) fixed().header.meeting.store(theirs.meeting, std::memory_order_relaxed);
    cards.push_back(parcel.bytes.substr(sizeof theirs, card.size()));
    parcel.bytes.erase(0, sizeof theirs + card.size());
    if (processes) {
      pidfds.push_back(std::move(parcel.fds.back()));
      parcel.fds.pop_back();
    }
    provider_->accept(rank, std::move(parcel));
    XCCL_TEST_POINT("attach.accepted");
    controls_.push_back(provider_->attach(rank, theirs.control));
    check_header(rank);
  }
  XCCL_TEST_POINT("attach.checked");
  liveness_.accept(std::move(pidfds));
  wait_log_.reset(size());  // that ranks start at different times is no wait of theirs
  leave();
  if (config_.progress_thread) progress_thread_ = std::make_unique<ProgressThread>(*this);
  return cards;
}

void World::write_job_name() {
  JobName& name = fixed().job;
  name.length = spec_.job.size();
  std::memcpy(name.text, spec_.job.data(), std::min(spec_.job.size(), sizeof name.text));
}

void World::check_header(int rank) {
  ControlHeader header{};
  const Transfer transfer{&header, 0, offsetof(ControlHeader, ready)};
  const RemoteRegion& region = control(rank);
  if (region.bytes != control_segment_bytes)
    fail(Status::Failure, "rank ", rank, " names a control segment of the wrong size");
  // The parcel was sent after `ready` was stored, so there is nothing to wait for; but nothing to believe either.
  if (provider_->fetch(region, offsetof(ControlHeader, ready)) != control_magic)
    fail(Status::Failure, "rank ", rank, "'s control segment is not ready");
  provider_->get(region, &transfer, 1);
  provider_->quiet();
  if (header.magic != control_magic)
    fail(Status::Failure, "rank ", rank, "'s control segment is not one of XCCL's");
  if (header.version != layout_version)
    throw Error(
        Status::Mismatch,
        text("rank ", rank, " uses memory layout ", header.version, ", this rank uses ", layout_version),
        {rank});
  if (header.rank != rank || header.size != static_cast<uint32_t>(spec_.size) ||
      header.segment_bytes != region.bytes)
    throw Error(
        Status::Mismatch,
        text("rank ", rank, "'s control segment belongs to rank ", header.rank, " of a job of ", header.size),
        {rank});
}

uint64_t World::allocate_lines(uint64_t bytes) {
  bytes = round_up(bytes, cache_line);
  const std::lock_guard lock(lines_mutex_);
  const auto offset = lines_.allocate(bytes, cache_line);
  if (!offset) fail_without_lines();
  const uint64_t end = round_up(*offset + bytes, 4096);
  if (end > lines_committed_) {
    try {
      provider_->commit(control_, lines_committed_, end - lines_committed_);
    } catch (...) {
      lines_.free(*offset, bytes);
      throw;
    }
    lines_committed_ = end;
  }
  std::memset(control_.base + *offset, 0, bytes);  // no peer knows the place yet
  return *offset;
}

void World::fail_without_lines() {
  fail(Status::OutOfMemory, "the control segment (", byte_count(control_segment_bytes),
       ") is full; close some communicators or ExpertParallel objects, or use fewer ranks");
}

void World::free_lines(uint64_t offset, uint64_t bytes) {
  const std::lock_guard lock(lines_mutex_);
  lines_.free(offset, round_up(bytes, cache_line));
}

void World::hear() {
  const std::lock_guard lock(news_mutex_);
  // Lowered before the flags are read: one set later raises it again. seq_cst: the read of the flags stays behind.
  const bool alarmed = fixed().bell.alarm.exchange(0, std::memory_order_seq_cst) != 0;
  for (int rank = 0; rank < spec_.size; ++rank) {
    const auto* flag = reinterpret_cast<std::atomic<uint64_t>*>(control_.base + peer_flag_offset(rank));
    const uint64_t value = flag->load(std::memory_order_acquire);
    if (value > static_cast<uint64_t>(this->flag(rank)))
      know(rank, value == static_cast<uint64_t>(PeerFlag::failed) ? PeerFlag::failed : PeerFlag::dead);
  }
  // Also where no flag is new: who has failed in one communicator may now have failed in another.
  if (alarmed) count_news();
}

bool World::no_news_since(uint64_t news) {
  const std::lock_guard lock(
      news_mutex_);  // another thread may have lowered the alarm and not yet counted that
  // acq_rel on a read-modify-write: the caller's reads stay before it. (A fence would do; ThreadSanitizer does not see
  // those.)
  return fixed().bell.alarm.fetch_add(0, std::memory_order_acq_rel) == 0 && this->news() == news;
}

void World::look() {
  for (const int rank : liveness_.ended())
    if (rank != spec_.rank && flag(rank) != PeerFlag::dead && state(rank) != RankState::closed)
      announce_death(rank);
}

RankState World::state(int rank) {
  return static_cast<RankState>(provider_->fetch(control(rank), status_offset + offsetof(StatusLine, state)));
}

void World::announce(int about, PeerFlag flag) {
  for (int rank = 0; rank < spec_.size; ++rank) {
    if (rank == spec_.rank) continue;
    provider_->signal(control(rank), peer_flag_offset(about), static_cast<uint64_t>(flag));
    provider_->signal(control(rank), alarm_offset, 1);
    provider_->notify(control(rank), doorbell_offset, -1);
  }
}

void World::announce_death(int rank) {
  know(rank, PeerFlag::dead);
  count_news();
  announce(rank, PeerFlag::dead);
}

namespace {

// The name of an operation as it stands in a status line.
struct PackedName {
  uint64_t words[2] = {0, 0};
  PackedName() = default;
  explicit PackedName(const char* name) {
    std::memcpy(words, name, std::min(std::strlen(name), sizeof words));
  }
  std::string str() const {
    return std::string(reinterpret_cast<const char*>(words),
                       strnlen(reinterpret_cast<const char*>(words), sizeof words));
  }
  bool operator==(const PackedName&) const = default;
};

}  // namespace

void World::enter(const char* op, uint64_t seq, int members) {
  const PackedName name(op);
  StatusLine& line = status();
  // Relaxed: hints, for other ranks' messages and for whoever looks from outside.
  line.op[0].store(name.words[0], std::memory_order_relaxed);
  line.op[1].store(name.words[1], std::memory_order_relaxed);
  line.seq.store(seq, std::memory_order_relaxed);
  line.since_ns.store(now_ns(), std::memory_order_relaxed);
  line.inside.store(static_cast<uint64_t>(members), std::memory_order_relaxed);
}

void World::leave() {
  status().inside.store(0, std::memory_order_relaxed);
  status().since_ns.store(now_ns(), std::memory_order_relaxed);
}

std::string World::whereabouts(int rank) {
  if (flag(rank) == PeerFlag::dead) return "dead";
  if (state(rank) == RankState::closed) return "closed";
  PackedName name;
  name.words[0] = status_word(rank, offsetof(StatusLine, op));
  name.words[1] = status_word(rank, offsetof(StatusLine, op) + 8);
  const uint64_t since = status_word(rank, offsetof(StatusLine, since_ns)), now = now_ns();
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.1f s",
                now > since ? static_cast<double>(now - since) * 1e-9 : 0.0);
  if (name == PackedName() || name == PackedName("init")) return "alive, in no XCCL call yet";
  const bool inside = status_word(rank, offsetof(StatusLine, inside)) != 0;
  return text("alive, ", inside ? "in " : "outside XCCL since ", name.str(), " #",
              status_word(rank, offsetof(StatusLine, seq)), inside ? " for " : ", ", seconds,
              inside ? "" : " ago");
}

WaitCount World::waited(int waiter, int late) {
  const uint64_t row = peer_waits_offset(size()) + sizeof(PeerWait) * static_cast<uint64_t>(late);
  const auto word = [&](size_t offset) { return provider_->fetch(control(waiter), row + offset); };
  return {word(offsetof(PeerWait, count)), word(offsetof(PeerWait, total_ns)),
          word(offsetof(PeerWait, longest_ns))};
}

uint64_t World::status_word(int rank, size_t offset) {
  return provider_->fetch(control(rank), status_offset + offset);
}

void World::add_engine(Engine* engine) {
  const std::lock_guard lock(engines_mutex_);
  engines_.push_back(engine);
}

void World::remove_engine(Engine* engine) {
  const std::lock_guard lock(engines_mutex_);
  std::erase(engines_, engine);
}

void World::advance_others(const Engine* but) {
  const std::unique_lock lock(engines_mutex_, std::try_to_lock);
  if (!lock) return;  // another thread is at it
  for (Engine* engine : engines_)
    if (engine != but) engine->try_advance();
}

bool World::advance_all() {
  advance_others(nullptr);
  const std::lock_guard lock(engines_mutex_);
  return std::any_of(engines_.begin(), engines_.end(),
                     [](const Engine* engine) { return engine->unfinished(); });
}

void World::close_one() {
  if (--open_communicators_ == 0) close();
}

void World::close() {
  if (closed_ || forked()) return;
  closed_ = true;
  if (progress_thread_) progress_thread_->stop();
  if (trace_) trace_->flush();
  // release: everything this rank published before is there for who sees that it closed.
  fixed().status.state.store(static_cast<uint64_t>(RankState::closed), std::memory_order_release);
}

bool World::forked() const { return fork_epoch_ != fork_count.load(std::memory_order_relaxed); }

}  // namespace xccl
