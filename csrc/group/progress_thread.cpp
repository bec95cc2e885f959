#include "group/progress_thread.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>

#include "group/world.hpp"

namespace xccl {

namespace {
// Between two looks at what has not come: at first as long as the fastest sleep takes, then longer, so that waiting for
// a slow rank takes no core from anybody.
constexpr std::chrono::microseconds shortest_nap{50}, longest_nap{1000};

// Signals are for the threads of the application.
class WithoutSignals {
 public:
  WithoutSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  WithoutSignals(const WithoutSignals&) = delete;
  WithoutSignals& operator=(const WithoutSignals&) = delete;

 private:
  sigset_t before_;
};
}  // namespace

ProgressThread::ProgressThread(World& world) : world_(world) {
  const WithoutSignals inherited;
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "xccl progress");
}

void ProgressThread::stop() {
  if (!thread_.joinable()) return;
  if (world_.forked()) return thread_.detach();  // the mutex may be locked for ever, and nobody is there
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void ProgressThread::wake() {
  {
    const std::lock_guard lock(mutex_);
    ++started_;
  }
  changed_.notify_one();
}

void ProgressThread::add(Background* background) {
  const std::lock_guard lock(backgrounds_mutex_);
  backgrounds_.push_back(background);
}

void ProgressThread::remove(Background* background) {
  if (world_.forked()) return;
  const std::lock_guard lock(backgrounds_mutex_);
  std::erase(backgrounds_, background);
}

void ProgressThread::run() {
  auto nap = shortest_nap;
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (seen != started_) nap = shortest_nap;
    seen = started_;  // before it looks: what is started later wakes it again
    lock.unlock();
    const bool more = advance();
    lock.lock();
    const auto called = [&] { return stopping_ || started_ != seen; };
    if (more)
      changed_.wait_for(lock, nap, called);
    else
      changed_.wait(lock, called);
    nap = std::min(2 * nap, longest_nap);
  }
}

bool ProgressThread::advance() {
  world_.provider().progress();
  bool more = world_.advance_all();
  const std::lock_guard lock(backgrounds_mutex_);
  for (Background* background : backgrounds_) more |= background->try_advance();
  return more;
}

}  // namespace xccl
