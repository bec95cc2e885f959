// The last error of each thread, as xccl_error_* tell it.
#include <string>
#include <vector>

#include "capi/wall.hpp"

namespace xccl::capi {
namespace {

struct LastError {
  Status status = Status::Ok;
  std::string message, operation, phase;
  uint64_t sequence = 0;
  std::vector<int> ranks;
  const char* without_memory = nullptr;  // instead of the message
};

LastError& last() {
  thread_local LastError error;
  return error;
}

xccl_status code(Status status) { return static_cast<xccl_status>(status); }

}  // namespace

xccl_status keep(const char* function, const Error& error) noexcept {
  LastError& kept = last();
  kept.status = error.status;
  try {
    LastError fresh;
    fresh.status = error.status;
    fresh.message = text(function, ": ", error.what());
    fresh.operation = error.op;
    fresh.phase = error.phase;
    fresh.sequence = error.seq;
    fresh.ranks = error.ranks;
    kept = std::move(fresh);
  } catch (...) {
    kept.operation.clear();
    kept.phase.clear();
    kept.sequence = 0;
    kept.ranks.clear();
    kept.without_memory = status_text(error.status);
  }
  return code(error.status);
}

xccl_status keep(const char* function, Status status, const char* what) noexcept {
  try {
    return keep(function, Error(status, what));
  } catch (...) {
    last() = LastError();
    last().status = status;
    last().without_memory = status_text(status);
    return code(status);
  }
}

}  // namespace xccl::capi

using xccl::capi::last;

xccl_status xccl_error_status(void) { return xccl::capi::code(last().status); }

const char* xccl_error_message(void) {
  return last().without_memory ? last().without_memory : last().message.c_str();
}

const char* xccl_error_operation(void) { return last().operation.c_str(); }
uint64_t xccl_error_sequence(void) { return last().sequence; }
const char* xccl_error_phase(void) { return last().phase.c_str(); }

const int* xccl_error_ranks(size_t* count_out) {
  if (count_out) *count_out = last().ranks.size();
  return last().ranks.data();
}
