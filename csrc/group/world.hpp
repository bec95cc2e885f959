// What this process shares with all ranks of one job: the provider, its own control segment and everybody else's,
// who is alive, and the news of deaths and failures. One per xccl::init; communicators are made on top.
// Not here: groups, operations and their errors (communicator.hpp).
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/trace.hpp"
#include "group/engine.hpp"
#include "group/liveness.hpp"
#include "group/progress_thread.hpp"
#include "memory/control_layout.hpp"
#include "memory/heap.hpp"
#include "memory/providers.hpp"
#include "memory/range_allocator.hpp"
#include "sync/wait.hpp"

namespace xccl {

// How one rank has waited for another.
struct WaitCount {
  uint64_t count = 0, total_ns = 0, longest_ns = 0;
};

class World {
 public:
  World(const JobSpec& spec, const Config& config);
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // Meets the other ranks. `card` is passed to each of them unread; the cards of all come back in rank order.
  std::vector<std::string> connect(const std::string& card, const Deadline& deadline);

  int rank() const { return spec_.rank; }
  int size() const { return spec_.size; }
  const JobSpec& spec() const { return spec_; }
  const Config& config() const { return config_; }
  Provider& provider() { return *provider_; }
  Heap& heap() { return heap_; }
  StatusLine& status() { return fixed().status; }
  WaitLog& wait_log() { return wait_log_; }
  // What `waiter` tells of its waits for another, or, of itself, for nobody in particular.
  WaitCount waited(int waiter, int late);
  Trace* trace() { return trace_.get(); }
  Bell& bell() { return fixed().bell; }
  std::byte* own_control() { return control_.base; }
  const RemoteRegion& control(int rank) const { return controls_[static_cast<size_t>(rank)]; }

  // Zeroed cache lines of the own control segment, for records and words that peers write. OutOfMemory.
  uint64_t allocate_lines(uint64_t bytes);
  // OutOfMemory: there is no room for more lines.
  [[noreturn]] static void fail_without_lines();
  void free_lines(uint64_t offset, uint64_t bytes);

  // --- Deaths and failures ---
  PeerFlag flag(int rank) const { return known_[static_cast<size_t>(rank)].load(std::memory_order_relaxed); }
  // Takes in what others have announced since the last look.
  void hear();
  // How often there has been news: a death, or a failure in any communicator. Who asks before it looks at the others
  // misses none: what it did not see yet is news afterwards.
  uint64_t news() const { return news_.load(std::memory_order_acquire); }
  // Whether there has been none since then, until now. What the caller has read before stays before.
  bool no_news_since(uint64_t news);
  // Looks at the processes themselves, and announces the dead.
  void look();
  RankState state(int rank);
  // This rank has failed in a communicator, whose seat says so already: everybody is told to look.
  void announce_failure() { announce(spec_.rank, PeerFlag::failed); }
  void announce_death(int rank);
  // Passes on what is known of a rank, so that all know it before this rank's call returns.
  void relay(int rank) { announce(rank, flag(rank)); }

  // --- What goes on inside all calls (engine.hpp) ---
  void add_engine(Engine* engine);
  void remove_engine(Engine* engine);
  void advance_others(const Engine* but);
  // For the progress thread: advances all of them. Whether one has something unfinished.
  bool advance_all();
  // Null if there is none.
  ProgressThread* progress_thread() { return progress_thread_.get(); }
  // Shows the others what this rank is doing, in a communicator of so many members.
  void enter(const char* op, uint64_t seq, int members);
  void leave();
  // "alive, in dispatch #4 for 2.1 s": where a rank is, from what it shows.
  std::string whereabouts(int rank);

  // Waits, looking around every millisecond, until gone() or the deadline: for the slow business of closing.
  template <class Gone>
  bool drain(Gone gone, const Deadline& deadline) {
    if (gone()) return true;
    enter("close", 0, size());
    const Leave at_last{*this};
    const LoggedWait logged(wait_log_, now_ns(), "draining", -1);
    while (!gone()) {
      if (deadline.passed()) return false;
      hear();
      look();
      provider_->progress();
      if (interrupt_check) interrupt_check();
      const timespec pause{0, 1'000'000};
      nanosleep(&pause, nullptr);
    }
    return true;
  }
  // A communicator of this world begins, ends. With the last the rank closes, in an orderly way.
  void enrol() { ++open_communicators_; }
  void close_one();
  void close();
  bool forked() const;

 private:
  ControlFixed& fixed() { return *reinterpret_cast<ControlFixed*>(control_.base); }
  uint64_t status_word(int rank, size_t offset);
  struct Leave {
    World& world;
    ~Leave() { world.leave(); }
  };
  void write_header();
  void write_job_name();
  void check_header(int rank);
  void know(int rank, PeerFlag flag) {
    known_[static_cast<size_t>(rank)].store(flag, std::memory_order_relaxed);
  }
  // release: who sees the count sees the flags.
  void count_news() { news_.fetch_add(1, std::memory_order_release); }
  void announce(int rank, PeerFlag flag);

  JobSpec spec_;
  Config config_;
  std::shared_ptr<Trace> trace_;
  int fork_epoch_;
  std::unique_ptr<Provider> provider_;
  Heap heap_;
  Region control_;
  std::mutex lines_mutex_;  // Python may make objects of several communicators at once
  RangeAllocator lines_;
  uint64_t lines_committed_ = 0;
  WaitLog wait_log_;
  std::vector<RemoteRegion> controls_;
  // Atomic: an object that is collected in another thread asks too. Relaxed: nothing else is read because of it.
  std::vector<std::atomic<PeerFlag>> known_;
  Liveness liveness_;
  std::mutex news_mutex_;  // of the alarm, between lowering it and having read the flags and counted that
  std::atomic<uint64_t> news_{0};
  std::mutex engines_mutex_;
  std::vector<Engine*> engines_;
  std::atomic<int> open_communicators_{0};
  bool closed_ = false;
  std::unique_ptr<ProgressThread> progress_thread_;  // the last member: it uses all others
};

}  // namespace xccl
