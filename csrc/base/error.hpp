// The one exception of the core. It carries fields, not only text: the status, the operation, its
// sequence number, the phase it was in, and the ranks at fault.
// Thrown where a thing is decided; layers above fill in what they know with `during` and rethrow.
// Not here: the Python classes (python/bind_errors.cpp).
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "base/text.hpp"

namespace xccl {

class Error : public std::exception {
 public:
  Error(Status status, std::string message, std::vector<int> ranks = {});

  // Says during which operation this happened. The innermost operation wins: later calls change nothing.
  Error& during(const char* op, uint64_t seq, const char* phase);

  const char* what() const noexcept override { return full_.c_str(); }

  Status status;
  std::string message;
  std::string op;     // "" when no operation was under way
  uint64_t seq = 0;   // which call of that operation, from 1
  std::string phase;  // "" when not known
  std::vector<int> ranks;
  bool seen_by_all = true;  // of a Mismatch: every rank finds it by itself, so nobody need be told

 private:
  std::string full_;
};

// throw Error(status, text(parts...)) in one word.
template <class... Parts>
[[noreturn]] void fail(Status status, const Parts&... parts) {
  throw Error(status, text(parts...));
}

// A failed system call: `what` says what was being done, errno says why.
[[noreturn]] void fail_errno(const char* what, int error_number);

}  // namespace xccl
