// Meeting of ranks that are threads of one process: a table under a mutex.
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>

#include "base/error.hpp"
#include "group/bootstrap.hpp"
#include "sync/wait.hpp"

namespace xccl {
namespace {

struct Meeting {
  std::condition_variable changed;
  int size = 0;
  std::map<int, std::string> arrived;  // rank -> bytes; local ranks have no descriptors to pass
  bool complete() const { return static_cast<int>(arrived.size()) == size; }
};

std::mutex mutex;
std::map<std::string, std::shared_ptr<Meeting>>& meetings() {
  static std::map<std::string, std::shared_ptr<Meeting>> table;
  return table;
}

}  // namespace

std::vector<Parcel> bootstrap_local(const JobSpec& spec, Parcel mine, const Deadline& deadline) {
  std::unique_lock lock(mutex);
  std::shared_ptr<Meeting>& entry = meetings()[spec.job];
  if (!entry) {
    entry = std::make_shared<Meeting>();
    entry->size = spec.size;
  }
  const std::shared_ptr<Meeting> meeting = entry;
  if (meeting->size != spec.size)
    fail(Status::Mismatch, "job \"", spec.job, "\" was started with ", meeting->size, " ranks, rank ",
         spec.rank, " says ", spec.size);
  if (!meeting->arrived.emplace(spec.rank, mine.bytes).second)
    fail(Status::InvalidArgument, "job \"", spec.job, "\" already has a rank ", spec.rank,
         "; give each job its own name");
  // The last to arrive takes the meeting off the table, so that the name can be used again.
  if (meeting->complete()) meetings().erase(spec.job);
  meeting->changed.notify_all();
  // Short slices, so that Ctrl-C is seen.
  while (!meeting->complete()) {
    meeting->changed.wait_for(lock, std::chrono::milliseconds(20));
    if (meeting->complete()) break;
    const auto leave = [&] {
      meeting->arrived.erase(spec.rank);
      if (meeting->arrived.empty()) meetings().erase(spec.job);
    };
    if (interrupt_check) {
      try {
        lock.unlock();
        interrupt_check();
        lock.lock();
      } catch (...) {
        lock.lock();
        if (!meeting->complete()) leave();
        throw;
      }
    }
    if (!deadline.passed() || meeting->complete()) continue;
    std::vector<int> missing;
    for (int rank = 0; rank < spec.size; ++rank)
      if (!meeting->arrived.count(rank)) missing.push_back(rank);
    leave();
    throw Error(Status::Timeout,
                text(rank_list(missing), " of job \"", spec.job, "\" did not arrive within ",
                     deadline.seconds(), " s"),
                missing);
  }
  std::vector<Parcel> parcels(static_cast<size_t>(spec.size));
  for (auto& [rank, bytes] : meeting->arrived) parcels[static_cast<size_t>(rank)].bytes = bytes;
  return parcels;
}

}  // namespace xccl
