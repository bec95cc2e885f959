// Meeting of processes of one host, with no server to start: rank 0 listens under the job's name for as long as
// the meeting takes, gathers one parcel from every rank and gives all of them to each.
//
//   rank r > 0 -> rank 0   hello    its rank, the size it believes in, its parcel
//   rank 0 -> rank r       parcels  several messages: at most 253 descriptors fit in one
//   rank 0 -> rank r       error    instead: what went wrong, in rank 0's words
#include <poll.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <map>

#include "base/error.hpp"
#include "base/test_point.hpp"
#include "group/bootstrap.hpp"
#include "group/unix_socket.hpp"
#include "memory/control_layout.hpp"
#include "sync/wait.hpp"

namespace xccl {
namespace {

enum class Kind : uint32_t { hello = 1, parcels = 2, error = 3 };

struct Head {
  uint64_t magic;
  uint32_t version;
  Kind kind;
  int32_t rank;    // hello: the sender; parcels: whose parcel comes first; error: its Status
  int32_t size;    // of the job
  uint32_t count;  // parcels in this message
  uint32_t fds_each;
};
constexpr uint64_t socket_magic = 0x4c43435854454d58;  // "XMETXCCL"
constexpr size_t max_parcel_bytes = 256;

// Bytes are taken off the front of what arrived, never past its end.
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}
  template <class T>
  T take() {
    T value;
    need(sizeof value);
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string take_bytes(size_t count) {
    need(count);
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }
  std::string rest() { return bytes_.substr(at_); }

 private:
  void need(size_t count) const {
    if (count > bytes_.size() - at_)
      fail(Status::Failure, "a malformed message arrived while the job was starting");
  }
  const std::string& bytes_;
  size_t at_ = 0;
};

template <class T>
void append(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

Head take_head(Reader& reader) {
  const Head head = reader.take<Head>();
  if (head.magic != socket_magic)
    fail(Status::Failure, "something that is not XCCL speaks under this job's name");
  if (head.version != layout_version)
    fail(Status::Mismatch, "a rank runs another version of XCCL: its memory layout is version ", head.version,
         ", ours is ", layout_version);
  return head;
}

std::string pack(Kind kind, int rank, int size, const Parcel* parcels, uint32_t count) {
  std::string out;
  append(out, Head{socket_magic, layout_version, kind, rank, size, count,
                   count ? static_cast<uint32_t>(parcels[0].fds.size()) : 0});
  for (uint32_t i = 0; i < count; ++i) {
    append(out, static_cast<uint32_t>(parcels[i].bytes.size()));
    out += parcels[i].bytes;
  }
  return out;
}

void unpack(const Head& head, Reader& reader, Message& message, Parcel* parcels) {
  if (message.fds.size() != size_t{head.count} * head.fds_each)
    fail(Status::Failure,
         "descriptors are missing from a message; raise the limit of open files (ulimit -n)");
  for (uint32_t i = 0; i < head.count; ++i) {
    const auto bytes = reader.take<uint32_t>();
    if (bytes > max_parcel_bytes)
      fail(Status::Failure, "a malformed message arrived while the job was starting");
    parcels[i].bytes = reader.take_bytes(bytes);
    for (uint32_t f = 0; f < head.fds_each; ++f)
      parcels[i].fds.push_back(std::move(message.fds[i * head.fds_each + f]));
  }
}

std::vector<int> descriptors(const Parcel* parcels, size_t count) {
  std::vector<int> out;
  for (size_t i = 0; i < count; ++i)
    for (const Fd& fd : parcels[i].fds) out.push_back(fd.get());
  return out;
}

// Every rank holds a pidfd of every other, and for a moment the memory files of a batch of them.
void allow_open_files(int size) {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t needed = 256 + 4 * static_cast<rlim_t>(size);
  if (limit.rlim_cur >= needed) return;
  if (limit.rlim_max < needed)
    fail(Status::Failure, size, " ranks need about ", needed, " open files each and the hard limit is ",
         limit.rlim_max, "; raise it (ulimit -Hn)");
  limit.rlim_cur = needed;
  setrlimit(RLIMIT_NOFILE, &limit);
}

class Host {  // rank 0
 public:
  Host(const JobSpec& spec, const std::string& name, Parcel mine)
      : spec_(spec), parcels_(static_cast<size_t>(spec.size)) {
    auto listener = unix_listen(name, spec.size + 16);
    if (!listener)
      fail(Status::InvalidArgument, "a job named \"", spec.job,
           "\" is starting on this host already; give each job its own name (job, or XCCL_JOB)");
    listener_ = std::move(*listener);
    parcels_[0] = std::move(mine);
    XCCL_TEST_POINT("bootstrap.listening");
  }

  std::vector<Parcel> run(const Deadline& deadline) {
    try {
      gather(deadline);
      XCCL_TEST_POINT("bootstrap.gathered");
      give(deadline);
    } catch (const Error& error) {
      for (auto& [rank, socket] : members_) tell(socket, error);
      throw;
    }
    return std::move(parcels_);
  }

 private:
  void gather(const Deadline& deadline) {
    while (static_cast<int>(members_.size()) < spec_.size - 1) {
      wait_for_any();
      while (auto socket = unix_accept(listener_)) strangers_.push_back(std::move(*socket));
      for (auto& socket : strangers_)
        if (readable(socket)) greet(socket);
      std::erase_if(strangers_, [](const Fd& socket) { return !socket; });
      for (auto& [rank, socket] : members_)
        if (readable(socket))
          throw Error(Status::PeerLost,
                      text("rank ", rank, " ended while job \"", spec_.job, "\" was starting"), {rank});
      if (interrupt_check) interrupt_check();
      if (deadline.passed()) throw Error(Status::Timeout, late_text(deadline), missing());
    }
  }

  void give(const Deadline& deadline) {
    const size_t each = parcels_[0].fds.size(), size = parcels_.size();
    const size_t batch = std::max<size_t>(1, max_fds_per_message / std::max<size_t>(each, 1) / 2);
    for (auto& [rank, socket] : members_)
      for (size_t first = 0; first < size; first += batch) {
        XCCL_TEST_POINT("bootstrap.giving");
        const auto count = static_cast<uint32_t>(std::min(batch, size - first));
        if (!unix_send(socket,
                       pack(Kind::parcels, static_cast<int>(first), spec_.size, &parcels_[first], count),
                       descriptors(&parcels_[first], count), deadline))
          throw Error(Status::PeerLost,
                      text("rank ", rank, " ended while job \"", spec_.job, "\" was starting"), {rank});
      }
  }

  // Takes a stranger's hello: it becomes a member, or is told why not and dropped.
  void greet(Fd& socket) {
    Message message = unix_receive(socket);
    if (message.bytes.empty()) {
      socket = Fd();
      return;
    }
    try {
      Reader reader(message.bytes);
      const Head head = take_head(reader);
      if (head.kind != Kind::hello || head.rank < 1 || head.count != 1 ||
          head.fds_each != parcels_[0].fds.size())
        fail(Status::Failure, "a malformed message arrived while the job was starting");
      if (head.size != spec_.size)
        throw Error(Status::Mismatch,
                    text("job \"", spec_.job, "\": rank 0 says ", spec_.size, " ranks, rank ", head.rank,
                         " says ", head.size),
                    {head.rank});
      if (head.rank >= spec_.size || members_.count(head.rank))
        fail(Status::InvalidArgument, "job \"", spec_.job, "\" already has a rank ", head.rank,
             "; are two jobs using one name?");
      unpack(head, reader, message, &parcels_[static_cast<size_t>(head.rank)]);
      members_[head.rank] = std::move(socket);
    } catch (const Error& error) {
      tell(socket, error);
      socket = Fd();
      // A wrong size is this job's own fault and ends it; a stranger's mistake is the stranger's.
      if (error.status == Status::Mismatch) throw;
    }
    socket = Fd();
  }

  void tell(const Fd& socket, const Error& error) {
    std::string out = pack(Kind::error, static_cast<int>(error.status), spec_.size, nullptr, 0);
    append(out, static_cast<uint32_t>(error.ranks.size()));
    for (const int rank : error.ranks) append(out, rank);
    out += error.message;
    unix_send(socket, out.substr(0, max_message_bytes), {}, Deadline(1.0));
  }

  void wait_for_any() const {
    std::vector<pollfd> entries{{listener_.get(), POLLIN, 0}};
    for (const auto& socket : strangers_) entries.push_back({socket.get(), POLLIN, 0});
    for (const auto& [rank, socket] : members_) entries.push_back({socket.get(), POLLIN, 0});
    poll(entries.data(), entries.size(), 50);
  }

  static bool readable(const Fd& socket) {
    pollfd entry{socket.get(), POLLIN, 0};
    return poll(&entry, 1, 0) > 0;
  }

  std::vector<int> missing() const {
    std::vector<int> out;
    for (int rank = 1; rank < spec_.size; ++rank)
      if (!members_.count(rank)) out.push_back(rank);
    return out;
  }

  std::string late_text(const Deadline& deadline) const {
    return text(rank_list(missing()), " of ", spec_.size, " did not arrive within ", deadline.seconds(),
                " s (job \"", spec_.job, "\"); were they started, on this host, with this job name?");
  }

  JobSpec spec_;
  Fd listener_;
  std::vector<Fd> strangers_;  // connected, not yet greeted
  std::map<int, Fd> members_;
  std::vector<Parcel> parcels_;
};

Fd find_host(const JobSpec& spec, const std::string& name, const Deadline& deadline) {
  for (long pause_ns = 500'000;; pause_ns = std::min(pause_ns * 2, 20'000'000L)) {
    if (auto socket = unix_connect(name)) return std::move(*socket);
    if (interrupt_check) interrupt_check();
    if (deadline.passed())
      throw Error(Status::Timeout,
                  text("rank 0 of job \"", spec.job, "\" did not appear within ", deadline.seconds(),
                       " s; was it started, on this host, by this user, with this job name?"),
                  {0});
    const timespec pause{0, pause_ns};
    nanosleep(&pause, nullptr);
  }
}

[[noreturn]] void rethrow_from_host(const Head& head, Reader& reader) {
  const auto count = reader.take<uint32_t>();
  std::vector<int> ranks;
  for (uint32_t i = 0; i < count && i < 65536; ++i) ranks.push_back(reader.take<int>());
  const auto status = head.rank > 0 && head.rank <= static_cast<int>(Status::Closed)
                          ? static_cast<Status>(head.rank)
                          : Status::Failure;
  throw Error(status, reader.rest(), ranks);
}

std::vector<Parcel> visit(const JobSpec& spec, const std::string& name, Parcel mine,
                          const Deadline& deadline) {
  const Fd host = find_host(spec, name, deadline);
  XCCL_TEST_POINT("bootstrap.connected");
  // Rank 0 knows who is missing and says so when its deadline, which is ours, passes: leave it a moment.
  const Deadline patience(static_cast<double>(deadline.remaining_ns()) * 1e-9 + 2.0);
  if (!unix_send(host, pack(Kind::hello, spec.rank, spec.size, &mine, 1), descriptors(&mine, 1), patience))
    throw Error(Status::PeerLost, text("rank 0 ended while job \"", spec.job, "\" was starting"), {0});
  XCCL_TEST_POINT("bootstrap.greeted");
  std::vector<Parcel> parcels(static_cast<size_t>(spec.size));
  for (int have = 0; have < spec.size;) {
    if (!unix_wait(host.get(), POLLIN, patience))
      throw Error(Status::Timeout,
                  text("rank 0 of job \"", spec.job, "\" did not answer within ", deadline.seconds(), " s"),
                  {0});
    Message message = unix_receive(host);
    if (message.bytes.empty())
      throw Error(Status::PeerLost, text("rank 0 ended while job \"", spec.job, "\" was starting"), {0});
    Reader reader(message.bytes);
    const Head head = take_head(reader);
    if (head.kind == Kind::error) rethrow_from_host(head, reader);
    if (head.kind != Kind::parcels || head.rank != have || head.count == 0 ||
        head.fds_each != mine.fds.size() || head.count > static_cast<uint32_t>(spec.size - have))
      fail(Status::Failure, "a malformed message arrived while the job was starting");
    unpack(head, reader, message, &parcels[static_cast<size_t>(have)]);
    have += static_cast<int>(head.count);
  }
  return parcels;
}

// The user is part of the name, so that users cannot take each other's; a long name is shortened by its hash.
std::string socket_name(const std::string& job) {
  std::string name = text("xccl.", geteuid(), ".", job);
  if (name.size() > 100) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (const unsigned char c : name) hash = (hash ^ c) * 1099511628211u;
    name = text(name.substr(0, 80), ".", hash);
  }
  return name;
}

}  // namespace

std::vector<Parcel> bootstrap_unix(const JobSpec& spec, Parcel mine, const Deadline& deadline) {
  allow_open_files(spec.size);
  const std::string name = socket_name(spec.job);
  if (spec.rank == 0) return Host(spec, name, std::move(mine)).run(deadline);
  return visit(spec, name, std::move(mine), deadline);
}

}  // namespace xccl
