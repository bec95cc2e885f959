// A thread of this rank that goes on with what has been started and not finished, while the application computes:
// messages of isend and irecv, second halves of dispatch and combine. Optional (XCCL_PROGRESS_THREAD), for hosts with
// cores to spare. Started and stopped by World. Not here: what there is to do (engine.hpp, Background below).
//
// It uses a communicator by try_hold() only, so a call there is never refused because of it, but waits until it has let
// go. It never waits for another rank: it looks, and naps. So it needs no doorbell, and nobody's wake-up can go to it in
// vain; the application's own calls sleep and are woken as ever.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace xccl {

class World;

// What only such a thread advances. (What any call advances in passing is an Engine.)
class Background {
 public:
  virtual ~Background() = default;
  // Does what can be done without waiting. True: there is more to come. What goes wrong is kept for who asks for it.
  virtual bool try_advance() noexcept = 0;
};

class ProgressThread {
 public:
  explicit ProgressThread(World& world);
  ~ProgressThread() { stop(); }
  ProgressThread(const ProgressThread&) = delete;
  ProgressThread& operator=(const ProgressThread&) = delete;

  // Joins it: from then on nothing is advanced. In the child of a fork there is none.
  void stop();
  // Something has been started.
  void wake();
  void add(Background* background);
  // Returns when the thread is not inside it.
  void remove(Background* background);

 private:
  void run();
  bool advance();

  World& world_;
  std::mutex backgrounds_mutex_;
  std::vector<Background*> backgrounds_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  uint64_t started_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace xccl
