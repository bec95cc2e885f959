// Who has died: a process is known by a pidfd that it opened on itself and passed to the others, so it is the
// right one across PID namespaces and when a forked child survives its parent.
// Used by group/world.cpp. Ranks that are threads have none: they end with
// the process, and one that fails says so itself (Communicator::abort).
#pragma once

#include <vector>

#include "base/parcel.hpp"

namespace xccl {

class Liveness {
 public:
  // Names this process to others.
  static Fd open_self();

  void accept(std::vector<Fd> pidfds) { pidfds_ = std::move(pidfds); }
  // The ranks whose process has ended, orderly or not. One system call. Empty for ranks that are threads.
  std::vector<int> ended() const;

 private:
  std::vector<Fd> pidfds_;  // by rank
};

}  // namespace xccl
