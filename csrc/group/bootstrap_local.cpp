// Meeting of ranks that are threads of one process: a table under a mutex.
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "base/error.hpp"
#include "group/bootstrap.hpp"
#include "sync/wait.hpp"

namespace xccl {
namespace {

struct Meeting {
  std::condition_variable changed;
  int size = 0;
  std::map<int, std::string> arrived;  // rank -> bytes; local ranks have no descriptors to pass
  std::optional<Error> failed;         // why it will never be complete: all who wait are told the same
  bool complete() const { return static_cast<int>(arrived.size()) == size; }
};

std::mutex mutex;
std::map<std::string, std::shared_ptr<Meeting>>& meetings() {
  static std::map<std::string, std::shared_ptr<Meeting>> table;
  return table;
}

// The lowest rank is taken at its word, whoever came first: the same ranks are named in every run.
Error disagreement(const Meeting& meeting, const JobSpec& spec) {
  std::vector<int> others;
  for (const auto& [rank, bytes] : meeting.arrived) others.push_back(rank);
  const bool newcomer_is_wrong = !others.empty() && others.front() < spec.rank;
  const std::vector<int> wrong = newcomer_is_wrong ? std::vector<int>{spec.rank} : others;
  return Error(Status::Mismatch,
               text("job \"", spec.job, "\" has ", newcomer_is_wrong ? meeting.size : spec.size, " ranks, ",
                    rank_list(wrong), " said ", newcomer_is_wrong ? spec.size : meeting.size),
               wrong);
}

// Ends a meeting for everybody. A later rank begins a new one.
[[noreturn]] void give_up(Meeting& meeting, const std::string& job, const Error& error) {
  meeting.failed = error;
  meetings().erase(job);
  meeting.changed.notify_all();
  throw error;
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
  if (meeting->size != spec.size) give_up(*meeting, spec.job, disagreement(*meeting, spec));
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
    if (meeting->failed) throw *meeting->failed;
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
        if (!meeting->complete() && !meeting->failed) leave();
        throw;
      }
    }
    if (!deadline.passed() || meeting->complete() || meeting->failed) continue;
    std::vector<int> missing;
    for (int rank = 0; rank < spec.size; ++rank)
      if (!meeting->arrived.count(rank)) missing.push_back(rank);
    give_up(*meeting, spec.job,
            Error(Status::Timeout,
                  text(rank_list(missing), " of job \"", spec.job, "\" did not arrive within ",
                       deadline.seconds(), " s"),
                  missing));
  }
  std::vector<Parcel> parcels(static_cast<size_t>(spec.size));
  for (auto& [rank, bytes] : meeting->arrived) parcels[static_cast<size_t>(rank)].bytes = bytes;
  return parcels;
}

}  // namespace xccl
