// A communicator: a group of ranks, the board on which they meet, and the frame in which every operation runs
// (one thread at a time, deadline, sequence number, who died, who is late).
// Collectives (collective/) and MoE (moe/) are written on top of it. Not here: moving any tensor; how survivors find a
// new communicator (shrink.hpp).
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/trace.hpp"
#include "group/communicator_layout.hpp"
#include "group/scratch.hpp"
#include "group/world.hpp"
#include "kernels/kernels.hpp"
#include "sync/board.hpp"

namespace xccl {

class Communicator;
class Shrinking;

// The operation under way, as its body sees it.
class Operation {
 public:
  const char* name;
  uint64_t seq;  // from 1
  const Deadline& deadline;

  void phase(const char* now) { phase_ = now; }
  const char* phase() const { return phase_; }
  // From here on others can see this call: leaving it by an exception ends the communicator, since nobody could
  // tell any more which ranks have done what. Before, an exception leaves no trace and the call can be repeated.
  void publish() { published_ = true; }
  bool published() const { return published_; }
  // For the trace: how many bytes this rank gives in the call.
  void moves(uint64_t bytes) { span_.moves(bytes); }

 private:
  friend class Communicator;
  Operation(const char* name, uint64_t seq, const Deadline& deadline, Trace* trace)
      : name(name), seq(seq), deadline(deadline), span_(trace, Trace::Event::Kind::operation, name, seq) {}
  Span span_;
  const char* phase_ = "checking";
  bool published_ = false;
  bool shown_ = false;  // as what this rank is doing
};

class Communicator : public Vigil {
 public:
  // Bytes of lines that the layer above needs for a communicator of so many members (p2p/channel_layout.hpp).
  using AnnexBytes = uint64_t (*)(int members);
  static uint64_t no_annex(int) { return 0; }

  // Meets all ranks of the job. Not returning until all have arrived; errors as in group/bootstrap.hpp.
  static std::shared_ptr<Communicator> init(const JobSpec& spec, const Config& config,
                                            AnnexBytes annex = no_annex);
  ~Communicator() override;

  // --- A communicator of some members of another (split, shrink): make, exchange cards, connect ---
  struct Card {  // what members tell each other about their part of a communicator
    uint64_t block;
    RegionKey scratch;
  };
  static std::shared_ptr<Communicator> make(Communicator& parent, const std::vector<int>& members_of_parent);
  Card card() const { return {block_, scratch_.region().key}; }
  // `id`: as for other objects made collectively on the parent, see open().
  void connect(const std::vector<Card>& cards, std::shared_ptr<Communicator> parent, uint64_t id);

  int rank() const { return group_.self; }
  int size() const { return group_.size(); }
  double timeout() const { return world_->config().timeout; }
  World& world() { return *world_; }
  std::shared_ptr<World> share_world() { return world_; }
  const Neighbourhood& group() const { return group_; }
  // Bytes of control segment that a communicator of all ranks takes, the segment's fixed part included.
  static uint64_t control_bytes(int ranks, uint64_t annex_bytes);
  // Rank in the job of a member: what errors name.
  int job_rank(int member) const { return members_[static_cast<size_t>(member)]; }
  std::vector<int> job_ranks(const std::vector<int>& members) const;
  // Where the annex lies in a member's control segment.
  uint64_t annex(int member) const { return blocks_[static_cast<size_t>(member)] + layout_->annex; }
  AnnexBytes annex_bytes() const { return annex_bytes_; }
  void set_engine(Engine* engine);
  // Memory of the engine that others may still read when this rank closes. It goes with the communicator's lines; that
  // of all ranks keeps it until the job's memory goes.
  void leave_behind(const Region& region) { left_behind_ = region; }
  // Of the communicator's own collectives: the board, dissemination words and scratch (collective/).
  Board& board() { return *board_; }
  uint64_t barrier_word(int member, int round) const;
  // This rank has come to the barrier of this number; has the member?
  void come_to_barrier(uint64_t seq) {
    // Relaxed: who looks because this rank has closed sees it by the release of that; for others it is a hint.
    seat().barrier.store(seq, std::memory_order_relaxed);
  }
  bool has_come_to_barrier(int member, uint64_t seq) {
    return seat_word(member, offsetof(Seat, barrier)) >= seq;
  }
  Scratch& scratch() { return scratch_; }
  const RemoteRegion& peer_scratch(int member);
  uint64_t& collective_seq() { return collective_seq_; }
  uint64_t& barrier_seq() { return barrier_seq_; }
  // What XCCL_KERNELS chooses, looked up once. InvalidArgument when it cannot run here.
  const Kernels& kernels() {
    if (!kernels_) kernels_ = &select_kernels(world_->config().kernels);
    return *kernels_;
  }

  // Holds the communicator for one thread: InvalidArgument when another one is inside a call. One that only makes
  // progress here (try_hold) is soon done, and waited for.
  class Hold {
   public:
    Hold(Communicator& comm, const char* op) : comm_(comm) {
      Use was = Use::none;
      if (!comm.use_.compare_exchange_strong(was, Use::call, std::memory_order_acquire)) comm.hold(op);
    }
    ~Hold() { comm_.unhold(); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    Communicator& comm_;
  };

  // The same for a little work that can as well be left: false when another thread uses the communicator.
  bool try_hold() {
    Use was = Use::none;
    return use_.compare_exchange_strong(was, Use::progress, std::memory_order_acquire);
  }
  void unhold() { use_.store(Use::none, std::memory_order_release); }
  // Is there a core for every rank of the job, so that looking again and again disturbs nobody?
  bool spins_freely() const;

  // Runs body(operation) as call number `counter` + 1. timeout < 0: the default. Errors that leave it carry the
  // operation, the number and the phase. When others could see the call, its end by an error ends the communicator.
  template <class Body>
  void operate(const char* name, uint64_t& counter, double timeout, Body body) {
    const Hold hold(*this, name);
    run(name, counter, timeout, body, &Communicator::begin, trace_);
  }
  // The same for a call that holds the communicator already, and is in the trace.
  template <class Body>
  void operate(const Hold&, const char* name, uint64_t& counter, double timeout, Body body) {
    run(name, counter, timeout, body, &Communicator::begin, nullptr);
  }
  // The same as a collective of this communicator. Every round of it is a call of its own on the board, which the body
  // counts.
  template <class Body>
  void operate_in_rounds(const char* name, double timeout, Body body) {
    const Hold hold(*this, name);
    uint64_t rounds = collective_seq_;
    run(name, rounds, timeout, body, &Communicator::begin, trace_);
  }
  // A part of a call that others can see already, done for it by a thread that holds the communicator by try_hold: it is
  // not what this rank is shown to be doing.
  template <class Body>
  void operate_aside(const char* name, uint64_t seq, Body body) {
    uint64_t before = seq - 1;
    run(name, before, -1, body, &Communicator::begin_aside, trace_);
  }
  // The same for what an ended communicator is still good for (shrink.hpp): refused only to those who have left it.
  template <class Body>
  void operate_among_survivors(const char* name, uint64_t& counter, double timeout, Body body) {
    const Hold hold(*this, name);
    run(name, counter, timeout, body, &Communicator::begin_among_survivors, trace_);
  }

  // Waits until ready(member) holds for every member but this one. Timeout names those for whom it does not.
  template <class Ready>
  void await_members(Operation& op, Ready ready) {
    for (int step = 1; step < size(); ++step) {
      const int member = (rank() + step) % size();
      if (!ready(member))
        await(op, member, [&] { return ready(member); }, [&](int other) { return ready(other); });
    }
  }
  // Waits until ready() holds; `member` makes it so, -1: anybody. `done` tells who has done its part: who has not, and
  // has closed, ends the wait. False when the deadline passed.
  template <class Ready, class Done>
  bool wait(Operation& op, int member, Ready ready, Done done) {
    done_ = done;
    phase_ = op.phase();
    awaited_ = member;
    const TracedWait traced(*this);
    bool came = waiter_->until(ready, member < 0 ? -1 : job_rank(member), op.deadline, *this);
    // So that who only ever waits for a moment learns of it, too.
    if (!came) came = look_now_and_then(ready);
    done_ = nullptr;
    return came;
  }
  // What a wait would notice of the others, for calls that only ask. Throws as a wait does; else tells whether ready().
  template <class Ready, class Done>
  bool glance(Ready ready, Done done) {
    done_ = done;
    const bool came = look_now_and_then(ready);
    done_ = nullptr;
    return came;
  }
  // The same, where being late ends the call.
  template <class Ready, class Done>
  void await(Operation& op, int member, Ready ready, Done done) {
    if (!wait(op, member, ready, done)) raise_timeout(op, collect(done), member);
  }
  // Timeout naming the members that have not done their part; all of them have: `awaited`.
  [[noreturn]] void raise_timeout(const Operation& op, const std::vector<bool>& done, int awaited);

  // Waits until ready(member) holds, a word in the member's memory that nobody wakes this rank for: looks again and
  // again, ever more seldom. For rare waits off the hot path. A member that has closed or died counts as ready.
  template <class Ready>
  void await_remote(Operation& op, int member, Ready ready) {
    const auto done = [&](int other) { return ready(other) || !running(other); };
    const auto look = [&] {
      alarmed();
      world_->look();
      raise_if_member_down();
    };
    if (!poll(op, member, [&] { return done(member); }, look)) raise_timeout(op, collect(done), member);
  }
  // The bare wait of that kind; look() is called now and then, and throws to end it. False when the deadline passed.
  // `member`: for whom, -1: nobody in particular.
  bool poll(Operation& op, int member, const std::function<bool()>& ready, const std::function<void()>& look);
  // Neither closed nor failed nor dead, as far as it shows.
  bool running(int member) {
    return world_->flag(job_rank(member)) != PeerFlag::dead && state(member) == RankState::running;
  }

  // --- Who waited for whom (sync/wait_log.hpp) ---
  // What every member tells of its waits for every other, in any communicator of the job, row by row; a member's waits
  // for nobody in particular are in the diagonal. Nobody needs to help, nor to be alive.
  std::vector<WaitCount> wait_stats();
  // This rank's own row begins anew.
  void reset_wait_stats() { world_->wait_log().reset(world_->size()); }

  // --- Objects made collectively on this communicator (moe/, sub-groups), with growing ids, alike on all members ---
  // What others might still write to or read is freed when all members have closed them, which is learnt when the next
  // object is made.
  struct Lines {  // in the own control segment
    uint64_t offset, bytes;
  };
  struct Remains {
    std::vector<Lines> lines;
    std::vector<Region> regions;
  };
  // The id of an object that all members are making now. All of them ask, also those that will have no part in it.
  uint64_t new_object();
  void open(uint64_t id);
  uint64_t oldest_open() const;  // UINT64_MAX: none is
  void retire(uint64_t id, const Remains& remains);
  void free_retired(uint64_t all_closed_before);

  // Called at the end of every operation that pulled: PeerLost or PeerFailed unless what was pulled can be trusted.
  void require_trust();

  // Tells everybody that this rank gives up, for the reason given, and leaves for good: the communicator refuses further
  // use, and its survivors shrink it without this rank. In any thread: a call that another one is inside ends, too.
  void abort(const std::string& reason);
  // Does what others count on already, in the operation `op` but outside its calls: an error in it must reach them.
  template <class Body>
  auto tell_failure(const char* op, Body body) {
    try {
      return body();
    } catch (Error& error) {
      end(error.during(op, collective_seq_, ""));
      throw;
    } catch (const std::bad_alloc&) {
      Error error(Status::OutOfMemory, "private memory is used up");
      end(error.during(op, collective_seq_, ""));
      throw error;
    } catch (const std::exception& error) {
      end(Error(Status::Failure, error.what()));
      throw;
    } catch (...) {
      end(Error(Status::Failure, "interrupted"));
      throw;
    }
  }
  // InvalidArgument, Closed, or the first cause: whatever forbids to use this communicator now.
  void require_usable() const;
  // The same at the beginning of a call that has no frame (operate), and what has become known of other ranks.
  void require_fine(const char* op, uint64_t seq);
  // An error that nobody can go on from: later calls raise it.
  void end(const Error& cause);
  // Orderly end: waits, within the deadline, until nobody needs this rank's memory any more. Never throws for a
  // peer's sake. Safe to call twice.
  void close() {
    if (!closed_) close(Hold(*this, "close"));
  }
  void close(const Hold& hold);
  // What a close waits for: that gone() holds. False when that may never be: the deadline has passed, or a member has died
  // or failed, since whoever learns of that finishes nothing any more, and may go on elsewhere without closing this.
  template <class Gone>
  bool drain(Gone gone, const Deadline& deadline) {
    bool in_vain = false;
    return world_->drain([&] { return gone() || (in_vain = somebody_is_down()); }, deadline) && !in_vain;
  }
  bool closed() const { return closed_; }
  // acquire: the cause is there. abort() may be called in any thread.
  bool broken() const { return is_broken_.load(std::memory_order_acquire); }

  // --- Among survivors (shrink.cpp) ---
  // Whether the member may still come to shrink: it has neither died nor closed nor aborted. Once false, false for ever,
  // and what the member has published until then is all that it ever will.
  bool takes_part(int member);
  // Publishes something for the others by publish(), unless another thread has aborted meanwhile: that raises here.
  template <class Publish>
  void publish_as_survivor(Publish publish) {
    const std::lock_guard lock(end_mutex_);
    require_not_left();
    publish();
  }
  void require_not_left() const;
  uint64_t survivor_word(int member, uint64_t offset) {
    return seat_word(member, layout_->survivors + offset);
  }
  SurvivorWords& survivor_words() {
    return *reinterpret_cast<SurvivorWords*>(world_->own_control() + block_ + layout_->survivors);
  }
  uint64_t next_object() const;
  uint64_t& shrinks() { return shrinks_; }
  Shrinking& shrinking() { return *shrinking_; }
  // Before connect(). Nobody knows of it: all that it has taken is given back at once.
  void unmake();
  // Somebody may: it ends as one that is closed, and what it has taken goes with what the communicator it was made from
  // leaves.
  Remains forsake();

  // --- Vigil ---
  void alarmed() override;
  void keep(int for_rank, bool (*ready)(void*), void* context) override;
  void progress(bool patient) override;
  bool unfinished() const override { return engine_ && engine_->unfinished(); }
  uint64_t moved() const override { return engine_ ? engine_->moved() : 0; }
  const char* phase() const override { return phase_; }
  int awaited(int for_rank) override;
  std::vector<int> missing() override;

  // Null if there is none.
  Trace* trace() const { return trace_; }

 private:
  enum class Kind { whole, part };
  // The wait that has been begun, in the trace.
  struct TracedWait {
    explicit TracedWait(Communicator& comm) : span(comm.trace_, Trace::Event::Kind::wait, comm.phase_) {
      if (comm.trace_) [[unlikely]]
        span.with(comm.awaited(-1));
    }
    Span span;
  };

  Communicator(std::shared_ptr<World> world, AnnexBytes annex, Kind kind);

  Seat& seat() { return *reinterpret_cast<Seat*>(world_->own_control() + block_); }
  uint64_t seat_word(int member, uint64_t offset);
  RankState state(int member) { return static_cast<RankState>(seat_word(member, offsetof(Seat, state))); }
  void announce_failure(const std::string& why, RankState state);
  void wake_members();
  void leave_seat();
  std::string failure_text(int member);
  void prepare(const std::vector<int>& members);
  void unmake_lines();
  template <class Body>
  void run(const char* name, uint64_t& counter, double timeout, Body& body,
           void (Communicator::*begin)(Operation&), Trace* trace) {
    const Deadline deadline(timeout < 0 ? this->timeout() : timeout);
    Operation op(name, counter + 1, deadline, trace);
    (this->*begin)(op);
    try {
      body(op);
      counter += op.published();
      if (op.shown_) world_->leave();
    } catch (Error& error) {
      error.during(op.name, op.seq, op.phase());
      counter += op.published();
      leave_by(error, op);
      throw;
    } catch (const std::bad_alloc&) {
      counter += op.published();
      Error error(Status::OutOfMemory, "private memory is used up");
      leave_by(error.during(op.name, op.seq, op.phase()), op);
      throw error;
    } catch (...) {
      counter += op.published();
      leave_by(Error(Status::Failure, text("interrupted in ", op.name, " #", op.seq)), op);
      throw;
    }
  }
  void hold(const char* op);
  void begin(Operation& op);
  void begin_aside(Operation& op) { require_fine(op.name, op.seq); }
  void begin_among_survivors(Operation& op);
  void show(Operation& op);
  void require_open() const;
  void leave_by(const Error& error, const Operation& op);
  void leave_world(bool scratch_is_free);
  bool somebody_is_down();
  void raise_if_member_down();
  template <class Done>
  std::vector<bool> collect(Done done) const {
    std::vector<bool> out;
    for (int member = 0; member < size(); ++member) out.push_back(member == rank() || done(member));
    return out;
  }
  // Keeps the vigil if that was long ago.
  template <class Ready>
  bool look_now_and_then(Ready ready) {
    if (const uint64_t now = now_ns(); now - last_look_ns_ >= look_interval_ns) {
      last_look_ns_ = now;
      keep(-1, [](void* context) { return (*static_cast<Ready*>(context))(); }, &ready);
    }
    return ready();
  }

  std::shared_ptr<World> world_;
  Trace* trace_;  // the world's
  AnnexBytes annex_bytes_;
  const Kind kind_;
  std::shared_ptr<Communicator> parent_;  // once connected; null for that of all ranks
  uint64_t id_ = 0;                       // on the parent
  std::vector<int> members_;              // rank in the job of each member
  Neighbourhood group_;
  std::optional<CommunicatorLayout> layout_;
  uint64_t block_ = 0;  // where its lines begin in the own control segment; 0: it has none
  std::vector<uint64_t> blocks_;
  std::optional<Waiter> waiter_;
  Engine* engine_ = nullptr;
  std::optional<Region> left_behind_;
  Scratch scratch_;
  const Kernels* kernels_ = nullptr;
  std::vector<RegionKey> scratch_keys_;
  std::vector<std::optional<RemoteRegion>> peer_scratch_;  // attached on first use
  std::optional<Board> board_;
  uint64_t collective_seq_ = 0, barrier_seq_ = 0, shrinks_ = 0;
  static constexpr uint64_t itself = UINT64_MAX;  // an object of its own as well, the youngest
  mutable std::mutex objects_mutex_;              // Python may collect a forgotten object in any thread
  std::set<uint64_t> open_objects_{itself};
  uint64_t newest_object_ = 0;
  std::map<uint64_t, Remains> retired_;  // closed here, perhaps not everywhere
  enum class Use : int { none, call, progress };
  std::atomic<Use> use_{Use::none};  // by whichever thread
  static constexpr uint64_t look_interval_ns = 10'000'000;
  uint64_t last_look_ns_ = 0;
  uint64_t seen_news_ = 0;         // of the world, until when all members were fine
  std::function<bool(int)> done_;  // during a wait: which members have done their part
  const char* phase_ = "";         // during a wait: of its operation
  int awaited_ = -1;               // during a wait: the member that makes it end, -1: anybody
  std::mutex end_mutex_;
  std::optional<Error> broken_;  // the first cause; written once, before is_broken_
  std::atomic<bool> is_broken_{false};
  std::atomic<bool> left_{false};  // this rank has aborted
  std::unique_ptr<Shrinking> shrinking_;
  std::atomic<bool> closed_{false};
};

}  // namespace xccl
