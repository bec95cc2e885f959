#include "group/observe.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.hpp"

namespace xccl {
namespace {

// True when all of it could be read.
bool read_at(int fd, uint64_t offset, void* to, uint64_t bytes) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = pread(fd, at, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got, offset += static_cast<uint64_t>(got), bytes -= static_cast<uint64_t>(got);
  }
  return true;
}

// The copied bytes of a segment. Offsets are checked by who makes them: all lie below lines_offset(size).
class Copy {
 public:
  explicit Copy(uint64_t bytes) : bytes_(bytes) {}
  char* data() { return bytes_.data(); }
  uint64_t size() const { return bytes_.size(); }
  uint64_t word(uint64_t offset) const {
    uint64_t value;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }
  std::string text(uint64_t offset, uint64_t most) const {
    return std::string(bytes_.data() + offset, strnlen(bytes_.data() + offset, most));
  }
  bool same(const Copy& other, uint64_t offset, uint64_t bytes) const {
    return std::memcmp(bytes_.data() + offset, other.bytes_.data() + offset, bytes) == 0;
  }

 private:
  std::vector<char> bytes_;
};

constexpr uint64_t wait_offset = offsetof(ControlFixed, wait), job_offset = offsetof(ControlFixed, job);

// A copy in which the operation and its wait belong together, if the rank gives us the time for it.
bool take_copy(int fd, Copy& copy) {
  Copy before(copy.size());
  if (!read_at(fd, 0, before.data(), before.size())) return false;
  for (int attempt = 0; attempt < 4; ++attempt) {
    if (!read_at(fd, 0, copy.data(), copy.size())) return false;
    if (copy.same(before, status_offset, job_offset - status_offset)) return true;
    before = copy;
  }
  return true;
}

void fill_status(Observation& out, const Copy& copy) {
  out.pid = copy.word(offsetof(ControlHeader, pid));
  out.meeting = copy.word(offsetof(ControlHeader, meeting));
  out.job = copy.text(job_offset + offsetof(JobName, text),
                      std::min<uint64_t>(copy.word(job_offset), sizeof JobName::text));
  const auto status = [&](uint64_t offset) { return copy.word(status_offset + offset); };
  out.state = static_cast<RankState>(status(offsetof(StatusLine, state)));
  out.op = copy.text(status_offset + offsetof(StatusLine, op), sizeof StatusLine::op);
  out.seq = status(offsetof(StatusLine, seq));
  out.members = status(offsetof(StatusLine, inside));
  out.since_ns = status(offsetof(StatusLine, since_ns));
  out.array_bytes = status(offsetof(StatusLine, array_bytes));
  out.wait_since_ns = copy.word(wait_offset + offsetof(WaitLine, since_ns));
  if (out.wait_since_ns)
    out.phase = copy.text(wait_offset + offsetof(WaitLine, phase), sizeof WaitLine::phase);
}

void fill_peers(Observation& out, const Copy& copy) {
  for (int rank = 0; rank < out.size; ++rank) {
    const uint64_t flag = copy.word(peer_flag_offset(rank));
    if (flag == static_cast<uint64_t>(PeerFlag::failed)) out.failed.push_back(rank);
    if (flag == static_cast<uint64_t>(PeerFlag::dead)) out.dead.push_back(rank);
    const uint64_t row = peer_waits_offset(out.size) + sizeof(PeerWait) * static_cast<uint64_t>(rank);
    out.waited.push_back({copy.word(row + offsetof(PeerWait, count)),
                          copy.word(row + offsetof(PeerWait, total_ns)),
                          copy.word(row + offsetof(PeerWait, longest_ns))});
    if (out.wait_since_ns && copy.word(row + offsetof(PeerWait, since_ns))) out.waits_for.push_back(rank);
  }
}

}  // namespace

std::optional<Observation> observe(int fd) {
  struct stat facts;
  if (fstat(fd, &facts) != 0) fail_errno("looking at a memory file", errno);
  Copy header(sizeof(ControlHeader));
  if (!read_at(fd, 0, header.data(), header.size()) ||
      header.word(offsetof(ControlHeader, magic)) != control_magic)
    return std::nullopt;
  Observation out;
  std::memcpy(&out.version, header.data() + offsetof(ControlHeader, version), sizeof out.version);
  if (out.version != layout_version) return out;
  uint32_t size;
  std::memcpy(&size, header.data() + offsetof(ControlHeader, size), sizeof size);
  std::memcpy(&out.rank, header.data() + offsetof(ControlHeader, rank), sizeof out.rank);
  constexpr uint32_t most_ranks = control_segment_bytes / (sizeof(PeerWait) + 16);
  if (header.word(offsetof(ControlHeader, ready)) != control_magic || size < 1 || size > most_ranks ||
      out.rank < 0 || static_cast<uint32_t>(out.rank) >= size)
    return std::nullopt;
  out.size = static_cast<int>(size);
  out.file_bytes = static_cast<uint64_t>(facts.st_blocks) * 512;
  Copy copy(lines_offset(out.size));
  if (!take_copy(fd, copy)) return std::nullopt;
  fill_status(out, copy);
  fill_peers(out, copy);
  return out;
}

}  // namespace xccl
