#include "base/trace.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>

#include "base/clock.hpp"
#include "base/error.hpp"

namespace xccl {
namespace {

constexpr size_t most_kept_bytes = 64 * 1024;
constexpr uint64_t longest_kept_ns = 1'000'000'000;
constexpr uint64_t shortest_wait_ns = 1'000;  // what was there at once was not waited for

// A number of the kernel: it tells threads apart also when they come and go.
int thread_number() {
  thread_local const int number = static_cast<int>(syscall(SYS_gettid));
  return number;
}

std::string quoted(const std::string& bytes) {
  std::string out = "\"";
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {  // job names need not be text in any encoding
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

// Nanoseconds as microseconds, exactly: a double would not hold them.
std::string microseconds(uint64_t ns) {
  char out[32];
  std::snprintf(out, sizeof out, "%llu.%03u", static_cast<unsigned long long>(ns / 1000),
                static_cast<unsigned>(ns % 1000));
  return out;
}

std::string as_json(const Trace::Event& event, int rank) {
  const bool wait = event.kind == Trace::Event::Kind::wait;
  std::string name = event.name;
  if (wait) name = event.peer < 0 ? "wait for anybody" : text("wait for rank ", event.peer);
  std::string arguments;
  const auto argument = [&](const char* key, const auto& value) {
    arguments += text(arguments.empty() ? "" : ",", quoted(key), ":", value);
  };
  if (wait) argument("phase", quoted(event.name));
  if (event.seq != Trace::unknown) argument("seq", event.seq);
  if (event.bytes != Trace::unknown) argument("bytes", event.bytes);
  if (event.peer >= 0) argument("peer", event.peer);
  if (event.peer == Trace::anybody) argument("peer", quoted("any"));
  if (event.failed) argument("failed", "true");
  return text("{\"name\":", quoted(name), ",\"cat\":\"", wait ? "wait" : "operation",
              "\",\"ph\":\"X\",\"pid\":", rank, ",\"tid\":", thread_number(),
              ",\"ts\":", microseconds(event.begin_ns),
              ",\"dur\":", microseconds(event.end_ns - event.begin_ns), ",\"args\":{", arguments, "}}");
}

void replace_all(std::string& text, const char* mark, const std::string& with) {
  for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + with.size()))
    text.replace(at, std::strlen(mark), with);
}

std::string title(int rank, int size, const std::string& job) {
  const std::string name = text("rank ", rank, " of ", size, ", job ", job);
  return text("{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":", rank,
              ",\"tid\":0,\"args\":{\"name\":", quoted(name), ",\"process\":", getpid(), "}},\n",
              "{\"name\":\"process_sort_index\",\"ph\":\"M\",\"pid\":", rank,
              ",\"tid\":0,\"args\":{\"sort_index\":", rank, "}}");
}

}  // namespace

std::string Trace::path_of(const std::string& setting, int rank) {
  std::string path = setting;
  if (path.find("%r") == std::string::npos) {
    const size_t name = path.rfind('/') + 1;  // npos + 1 is 0
    const size_t ending = path.rfind('.');
    path.insert(ending == std::string::npos || ending <= name ? path.size() : ending, ".%r");
  }
  replace_all(path, "%r", std::to_string(rank));
  replace_all(path, "%p", std::to_string(getpid()));
  return path;
}

namespace {
// The traces of this process, by path. They stay until it ends: the next join goes on where the last one was.
struct Traces {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Trace>> by_path;
  ~Traces() {  // also of a program that leaves without closing
    for (const auto& [path, trace] : by_path)
      if (trace) trace->flush();
  }
};
}  // namespace

std::shared_ptr<Trace> Trace::open(const std::string& setting, int rank, int size, const std::string& job) {
  if (setting.empty()) return nullptr;
  static Traces traces;
  const std::string path = path_of(setting, rank);
  const std::lock_guard lock(traces.mutex);
  auto& trace = traces.by_path[path];
  if (!trace || trace->forked()) trace = std::make_shared<Trace>(path, rank);
  const std::lock_guard inner(trace->mutex_);
  trace->keep(title(rank, size, job));
  trace->write();
  if (trace->lost_)
    fail(Status::InvalidArgument, "environment variable XCCL_TRACE: cannot write ", path, ": ",
         std::strerror(errno));
  return trace;
}

Trace::Trace(std::string path, int rank)
    : path_(std::move(path)),
      rank_(rank),
      pid_(getpid()),
      file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666)) {
  if (!file_)
    fail(Status::InvalidArgument, "environment variable XCCL_TRACE: cannot write ", path_, ": ",
         std::strerror(errno), "; give a file in a folder that exists and may be written");
  // Two that write one file would spoil it: another job, or a child that joins on its own.
  if (flock(file_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    fail(Status::InvalidArgument, "environment variable XCCL_TRACE: ", path_,
         " is being written by another process; put %p, the process id, into the name");
  if (ftruncate(file_.get(), 0) != 0 && errno != EINVAL)  // EINVAL: not a plain file, the first write tells
    fail(Status::InvalidArgument, "environment variable XCCL_TRACE: cannot write ", path_, ": ",
         std::strerror(errno));
}

bool Trace::forked() const { return pid_ != getpid(); }

void Trace::add(const Event& event) noexcept {
  try {
    const std::string json = as_json(event, rank_);
    const std::lock_guard lock(mutex_);
    keep(json);
    if (kept_.size() >= most_kept_bytes || event.end_ns - written_at_ns_ >= longest_kept_ns) write();
  } catch (const std::exception&) {  // no memory: the trace is the first to do without
    const std::lock_guard lock(mutex_);
    ++lost_;
  }
}

void Trace::keep(const std::string& event) {
  kept_ += first_ ? "[\n" : ",\n";
  kept_ += event;
  first_ = false;
  ++events_kept_;
}

void Trace::flush() noexcept {
  if (forked()) return;  // what is kept is the parent's
  const std::lock_guard lock(mutex_);
  write();
}

// Over the bracket that ends the array, and with a new one: so the file is whole after each write. A signal that kills
// can end a write between two pages; what is missing then is the end, which the format lets viewers do without.
void Trace::write() noexcept {
  written_at_ns_ = now_ns();
  if (kept_.empty() || forked()) return;
  try {
    if (lost_) {
      keep(text("{\"name\":\"", lost_, " events were lost\",\"ph\":\"i\",\"s\":\"p\",\"pid\":", rank_,
                ",\"tid\":0,\"ts\":", microseconds(written_at_ns_), "}"));
    }
    const size_t events = kept_.size();
    kept_ += "\n]\n";
    ssize_t done = 0;
    do done = pwrite(file_.get(), kept_.data(), kept_.size(), static_cast<off_t>(end_));
    while (done < 0 && errno == EINTR);
    if (done == static_cast<ssize_t>(kept_.size())) {
      end_ += events;
      lost_ = 0;
    } else {
      // Memory is bounded: what cannot be written is counted, and told by the next write that succeeds.
      lost_ += events_kept_;
      if (end_ == 0) first_ = true;
      const int error = done < 0 ? errno : ENOSPC;
      if (end_ > 0 && pwrite(file_.get(), "\n]\n", 3, static_cast<off_t>(end_)) == 3) [[maybe_unused]]
        const int cut = ftruncate(file_.get(), static_cast<off_t>(end_ + 3));
      errno = error;
    }
  } catch (const std::exception&) {
    lost_ += events_kept_;
  }
  kept_.clear();
  events_kept_ = 0;
}

void Span::begin(Trace::Event::Kind kind, const char* name, uint64_t seq, int peer) {
  exceptions_ = std::uncaught_exceptions();
  event_ = {kind, name, seq, Trace::unknown, peer, now_ns(), 0, false};
}

void Span::end() noexcept {
  event_.end_ns = now_ns();
  event_.failed = std::uncaught_exceptions() > exceptions_;
  if (event_.kind == Trace::Event::Kind::wait && event_.end_ns - event_.begin_ns < shortest_wait_ns) return;
  trace_->add(event_);
}

}  // namespace xccl
