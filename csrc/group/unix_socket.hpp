// Messages with descriptors over an abstract Unix socket, and no more than that: connect, accept, send, receive.
// Used by group/bootstrap_unix.cpp alone.
//
// SOCK_SEQPACKET keeps messages whole. The abstract name needs no file, so none is left behind. Only processes of
// the same user are listened to, on both sides (SO_PEERCRED).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/parcel.hpp"

namespace xccl {

constexpr size_t max_fds_per_message = 253;  // the kernel's SCM_MAX_FD
constexpr size_t max_message_bytes = 64 * 1024;

// Nothing when the name is taken.
std::optional<Fd> unix_listen(const std::string& name, int backlog);
// Nothing when nobody listens yet, or the queue is full: try again.
std::optional<Fd> unix_connect(const std::string& name);
// Nothing when nobody is waiting, or another user was (who is turned away).
std::optional<Fd> unix_accept(const Fd& listener);

// Waits until fd is readable (POLLIN) or writable (POLLOUT); false when the deadline passed. Sees Ctrl-C.
bool unix_wait(int fd, short events, const Deadline& deadline);

// False when the other side is gone or the deadline passed.
bool unix_send(const Fd& socket, const std::string& bytes, const std::vector<int>& fds,
               const Deadline& deadline);

struct Message {
  std::string bytes;  // empty: the other side is gone
  std::vector<Fd> fds;
};
// The next message; the caller knows that there is one, or an end. Failure when descriptors did not fit.
Message unix_receive(const Fd& socket);

}  // namespace xccl
