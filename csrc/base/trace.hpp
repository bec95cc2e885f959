// A trace of what one rank does, as Chrome's and Perfetto's trace viewers read it (XCCL_TRACE): a JSON array with one
// event for each operation and, inside it, one for each of its waits. docs/observing.md shows how to look at it.
// Made by World. Off, it is a null pointer, and a Span costs one predictable branch at each end.
//
// Events are kept in memory, 64 KiB or a second's worth, and then written so that the file is valid JSON after every
// write: a rank that is killed loses what it has kept, and no more. Not here: what is worth an event.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "base/parcel.hpp"

namespace xccl {

class Trace {
 public:
  // The file of a rank: XCCL_TRACE with "%r" replaced by the rank (if it is not there, it goes before the ending) and
  // "%p" by the process id.
  static std::string path_of(const std::string& setting, int rank);
  // Null if `setting` is empty. A program that joins several times goes on in the same file. InvalidArgument if it cannot
  // be written, or another process writes it.
  static std::shared_ptr<Trace> open(const std::string& setting, int rank, int size, const std::string& job);

  Trace(std::string path, int rank);
  ~Trace() { flush(); }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  static constexpr uint64_t unknown = UINT64_MAX;
  static constexpr int anybody = -1, nobody = -2;
  struct Event {
    enum class Kind { operation, wait } kind;
    const char* name;  // of the operation; or the phase in which it waits
    uint64_t seq;      // of the operation; unknown: a wait
    uint64_t bytes;
    int peer;                   // rank in the job
    uint64_t begin_ns, end_ns;  // CLOCK_MONOTONIC: the same for all ranks of a host
    bool failed;
  };
  void add(const Event& event) noexcept;
  void flush() noexcept;

 private:
  void keep(const std::string& event);
  void write() noexcept;
  bool forked() const;

  const std::string path_;
  const int rank_;
  const int pid_;
  std::mutex mutex_;  // of the rest: threads may use several communicators at once
  Fd file_;
  uint64_t end_ = 0;  // of the last event in the file: the array's bracket comes next
  bool first_ = true;
  std::string kept_;
  uint64_t events_kept_ = 0, lost_ = 0, written_at_ns_ = 0;
};

// An operation or a wait, from its beginning to its end, however it ends. Its fields are set only if there is a trace.
class Span {
 public:
  Span(Trace* trace, Trace::Event::Kind kind, const char* name, uint64_t seq = Trace::unknown,
       int peer = Trace::nobody)
      : trace_(trace) {
    if (trace_) [[unlikely]]
      begin(kind, name, seq, peer);
  }
  ~Span() {
    if (trace_) [[unlikely]]
      end();
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

  // How much is given, or received, as soon as it is known; and to or from whom.
  void moves(uint64_t bytes) {
    if (trace_) [[unlikely]]
      event_.bytes = bytes;
  }
  void with(int peer) {
    if (trace_) [[unlikely]]
      event_.peer = peer;
  }

 private:
  void begin(Trace::Event::Kind kind, const char* name, uint64_t seq, int peer);
  void end() noexcept;

  Trace* trace_;
  int exceptions_;
  Trace::Event event_;
};

}  // namespace xccl
