// The wall between C++ and C: nothing that is thrown passes it, but becomes a status and the thread's last error.
// Used by every file of this folder. Not here: what the functions do.
#pragma once

#include <cmath>
#include <cstring>
#include <exception>
#include <new>
#include <type_traits>

#include "base/error.hpp"
#include "capi/xccl.h"

namespace xccl::capi {

// Keeps the error for this thread, with the function's name before its text. Never throws: where there is no memory
// even for that, a text without details stays.
xccl_status keep(const char* function, const Error& error) noexcept;
xccl_status keep(const char* function, Status status, const char* what) noexcept;

// A C program can give any number as an enumeration. One that is none of its values may not be read as such in C++.
template <class Enum>
int number_of(const Enum& value) {
  int number;
  static_assert(sizeof number == sizeof value);
  std::memcpy(&number, &value, sizeof number);
  return number;
}

// Runs the body of the C function named. It returns nothing, or a status.
template <class Body>
xccl_status guarded(const char* function, Body body) noexcept {
  try {
    if constexpr (std::is_void_v<decltype(body())>) {
      body();
      return XCCL_OK;
    } else {
      return body();
    }
  } catch (const Error& error) {
    return keep(function, error);
  } catch (const std::bad_alloc&) {
    return keep(function, Status::OutOfMemory, "private memory is used up");
  } catch (const std::exception& error) {
    return keep(function, Status::Failure, error.what());
  } catch (...) {
    return keep(function, Status::Failure, "something unknown was thrown");
  }
}

// --- Arguments ---

inline void require(const void* pointer, const char* name) {
  if (!pointer) fail(Status::InvalidArgument, name, " is NULL");
}

// NULL only where there is nothing; aligned for elements of `alignment` bytes.
inline void require_memory(const void* memory, uint64_t bytes, const char* name, uint64_t alignment = 1) {
  if (bytes > 0) require(memory, name);
  if (reinterpret_cast<uintptr_t>(memory) % alignment != 0)
    fail(Status::InvalidArgument, name, " is misaligned: expected a multiple of ", alignment);
}

// A timeout as the core takes it: -1 for the default.
inline double seconds(double timeout) {
  if (timeout < 0) return -1;
  if (!std::isfinite(timeout) || timeout == 0)
    fail(Status::InvalidArgument, "timeout=", timeout,
         ": expected a positive number of seconds, or XCCL_DEFAULT_TIMEOUT; every wait is bounded");
  return timeout;
}

}  // namespace xccl::capi
