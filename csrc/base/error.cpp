#include "base/error.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

namespace xccl {

Error::Error(Status status, std::string message, std::vector<int> ranks)
    : status(status), message(std::move(message)), ranks(std::move(ranks)), full_(this->message) {}

Error& Error::during(const char* op_name, uint64_t number, const char* phase_name) {
  if (!op.empty()) return *this;
  op = op_name;
  seq = number;
  phase = phase_name;
  full_ =
      phase.empty() ? text(op, " #", seq, ": ", message) : text(op, " #", seq, ", ", phase, ": ", message);
  return *this;
}

void fail_errno(const char* what, int error_number) {
  const Status status =
      error_number == ENOMEM || error_number == ENOSPC ? Status::OutOfMemory : Status::Failure;
  fail(status, what, ": ", std::strerror(error_number));
}

}  // namespace xccl
