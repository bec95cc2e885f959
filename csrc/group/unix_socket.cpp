#include "group/unix_socket.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <ctime>

#include "base/error.hpp"
#include "sync/wait.hpp"

namespace xccl {
namespace {

struct Address {
  sockaddr_un addr{};
  socklen_t length;

  explicit Address(const std::string& name) {
    addr.sun_family = AF_UNIX;
    // The leading zero byte makes it an abstract name.
    const size_t bytes = std::min(name.size(), sizeof addr.sun_path - 1);
    std::memcpy(addr.sun_path + 1, name.data(), bytes);
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + bytes);
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&addr); }
};

Fd make_socket() {
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) fail_errno("creating a Unix socket", errno);
  return fd;
}

bool same_user(const Fd& socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

}  // namespace

std::optional<Fd> unix_listen(const std::string& name, int backlog) {
  Fd fd = make_socket();
  const Address address(name);
  if (bind(fd.get(), address.get(), address.length) != 0) {
    if (errno == EADDRINUSE) return std::nullopt;
    fail_errno("binding the job's socket", errno);
  }
  if (listen(fd.get(), backlog) != 0) fail_errno("listening on the job's socket", errno);
  return fd;
}

std::optional<Fd> unix_connect(const std::string& name) {
  Fd fd = make_socket();
  const Address address(name);
  if (connect(fd.get(), address.get(), address.length) != 0) {
    if (errno == ECONNREFUSED || errno == EAGAIN || errno == EINTR || errno == ENOENT) return std::nullopt;
    fail_errno("connecting to rank 0", errno);
  }
  if (!same_user(fd))
    fail(Status::Failure, "the job's name is held by a process of another user; choose another job name");
  return fd;
}

std::optional<Fd> unix_accept(const Fd& listener) {
  Fd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) {
    if (errno == EMFILE || errno == ENFILE)
      fail_errno("accepting a rank; raise the limit of open files (ulimit -n)", errno);
    return std::nullopt;
  }
  if (!same_user(fd)) return std::nullopt;
  return fd;
}

bool unix_wait(int fd, short events, const Deadline& deadline) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const int slice = static_cast<int>(std::min<uint64_t>(deadline.remaining_ns() / 1'000'000 + 1, 50));
    if (poll(&entry, 1, slice) > 0) return true;
    if (interrupt_check) interrupt_check();
    if (deadline.passed()) return false;
  }
}

bool unix_send(const Fd& socket, const std::string& bytes, const std::vector<int>& fds,
               const Deadline& deadline) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * max_fds_per_message)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  while (sendmsg(socket.get(), &message, MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == ETOOMANYREFS) {
      // The user's descriptors in flight are limited: let the other ranks take theirs out.
      const timespec pause{0, 1'000'000};
      nanosleep(&pause, nullptr);
      if (deadline.passed()) return false;
    } else if (errno != EAGAIN && errno != ENOBUFS) {
      return false;
    } else if (!unix_wait(socket.get(), POLLOUT, deadline)) {
      return false;
    }
  }
  return true;
}

Message unix_receive(const Fd& socket) {
  Message out;
  out.bytes.resize(max_message_bytes);
  iovec part{out.bytes.data(), out.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * max_fds_per_message)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got;
  do got = recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  for (cmsghdr* header = got >= 0 ? CMSG_FIRSTHDR(&message) : nullptr; header;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      out.fds.emplace_back(fd);
    }
  }
  if (got > 0 && (message.msg_flags & MSG_CTRUNC))
    fail(Status::Failure,
         "descriptors of other ranks were refused: too many open files; raise the limit (ulimit -n)");
  out.bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return out;
}

}  // namespace xccl
