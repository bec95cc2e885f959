// Owned file descriptors, and the parcel: the bytes and descriptors that a rank gives to every other rank
// when a job starts. Made by memory/ and group/liveness, carried by group/bootstrap.
#pragma once

#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

namespace xccl {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

struct Parcel {
  std::string bytes;    // data, never code: every reader checks it before use
  std::vector<Fd> fds;  // the same number from every rank of a job
};

}  // namespace xccl
