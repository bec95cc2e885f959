#include "group/liveness.hpp"

#include <poll.h>
#include <sys/syscall.h>

#include <cerrno>

#include "base/error.hpp"

namespace xccl {

Fd Liveness::open_self() {
  Fd fd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!fd) fail_errno("opening a pidfd (needs Linux 5.3)", errno);
  return fd;
}

std::vector<int> Liveness::ended() const {
  std::vector<pollfd> entries;
  for (const Fd& fd : pidfds_) entries.push_back({fd.get(), POLLIN, 0});
  std::vector<int> out;
  if (entries.empty() || poll(entries.data(), entries.size(), 0) <= 0) return out;
  for (size_t rank = 0; rank < entries.size(); ++rank)
    if (entries[rank].revents & POLLIN) out.push_back(static_cast<int>(rank));
  return out;
}

}  // namespace xccl
