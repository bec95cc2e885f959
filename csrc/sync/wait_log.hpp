// For whom this rank waits, and how long it has waited for each: what its control segment tells of that (WaitLine,
// PeerWait in memory/control_layout.hpp), for statistics and for whoever looks from outside.
// Written by Waiter and by the other waits of group/; read by World::wait_stats and group/observe.cpp.
//
// Only waits that have outlasted their spin come here, so short ones cost nothing. Every moment of a wait is charged to
// one rank, so that the sum over all ranks is the time that this one has waited.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/clock.hpp"
#include "memory/control_layout.hpp"

namespace xccl {

class WaitLog {
 public:
  // self: rank of the owner, whose entry is for waits for nobody in particular.
  WaitLog(WaitLine& line, PeerWait* peers, int self) : line_(line), peers_(peers), self_(self) {}

  // Forgets what was, not what goes on now.
  void reset(int ranks) {
    for (int rank = 0; rank < ranks; ++rank)
      for (auto* word : {&peers_[rank].count, &peers_[rank].total_ns, &peers_[rank].longest_ns})
        word->store(0, std::memory_order_relaxed);
  }

 private:
  friend class LoggedWait;
  PeerWait& of(int rank) { return peers_[rank < 0 ? self_ : rank]; }
  void begin(uint64_t since_ns, const char* phase);
  void goes_on(uint64_t since_ns) { line_.since_ns.store(since_ns, std::memory_order_relaxed); }
  void end() { line_.since_ns.store(0, std::memory_order_relaxed); }
  void charge(int rank, uint64_t ns);
  void show(int rank, uint64_t since_ns) { of(rank).since_ns.store(since_ns, std::memory_order_relaxed); }

  // All stores are relaxed: see control_layout.hpp.
  WaitLine& line_;
  PeerWait* peers_;
  int self_;
};

inline void WaitLog::begin(uint64_t since_ns, const char* phase) {
  uint64_t words[3] = {0, 0, 0};
  std::memcpy(words, phase, std::min(std::strlen(phase), sizeof words));
  for (int i = 0; i < 3; ++i) line_.phase[i].store(words[i], std::memory_order_relaxed);
  line_.since_ns.store(since_ns, std::memory_order_relaxed);
}

inline void WaitLog::charge(int rank, uint64_t ns) {
  PeerWait& peer = of(rank);
  peer.count.fetch_add(1, std::memory_order_relaxed);
  peer.total_ns.fetch_add(ns, std::memory_order_relaxed);
  uint64_t longest = peer.longest_ns.load(std::memory_order_relaxed);
  while (longest < ns && !peer.longest_ns.compare_exchange_weak(longest, ns, std::memory_order_relaxed)) {
  }
}

// One wait, from when it is known to be long until it ends, however it ends.
class LoggedWait {
 public:
  // since_ns: when it began. rank: for whom, -1: nobody in particular.
  LoggedWait(WaitLog& log, uint64_t since_ns, const char* phase, int rank)
      : log_(log), since_ns_(since_ns), charged_ns_(since_ns), rank_(rank) {
    log_.begin(since_ns, phase);
    log_.show(rank, since_ns);
  }
  ~LoggedWait() {
    charge(now_ns());
    log_.show(rank_, 0);
    for (const int rank : shown_) log_.show(rank, 0);
    log_.end();
  }
  LoggedWait(const LoggedWait&) = delete;
  LoggedWait& operator=(const LoggedWait&) = delete;

  // It goes on, from now for `rank`; all that are missing are shown.
  void goes_on(uint64_t now, int rank, std::vector<int> missing) {
    if (rank != rank_) charge(now);
    log_.goes_on(since_ns_);  // another thread's wait may have ended meanwhile
    missing.push_back(rank);
    shown_.push_back(rank_);
    for (const int other : shown_)
      if (std::find(missing.begin(), missing.end(), other) == missing.end()) log_.show(other, 0);
    for (const int other : missing) log_.show(other, since_ns_);
    rank_ = rank;
    shown_ = std::move(missing);
  }

 private:
  void charge(uint64_t now) {
    log_.charge(rank_, now > charged_ns_ ? now - charged_ns_ : 0);
    charged_ns_ = now;
  }

  WaitLog& log_;
  uint64_t since_ns_, charged_ns_;
  int rank_;
  std::vector<int> shown_;  // rank_ among them, once it has gone on
};

}  // namespace xccl
