// The one list of outcomes. The C++ enum, the texts and the Python classes are all made from it, and the C enum is held
// to it (capi/status.cpp does not compile otherwise), so that none of them can lack a case.
// Used by every layer. Not here: how an error carries its details (error.hpp).
#pragma once

namespace xccl {

// name, name in C after XCCL_, what it means
#define XCCL_STATUS_LIST(X)                                                                          \
  X(Ok, OK, "success")                                                                               \
  X(Failure, FAILURE, "the operating system or the library itself failed")                           \
  X(InvalidArgument, INVALID_ARGUMENT, "an argument is wrong; nothing was sent and nothing changed") \
  X(Mismatch, MISMATCH, "ranks called the same operation with arguments that disagree")              \
  X(Timeout, TIMEOUT, "the deadline passed; the ranks named are alive but late")                     \
  X(PeerLost, PEER_LOST, "a rank died")                                                              \
  X(PeerFailed, PEER_FAILED, "a rank raised an error and told the others")                           \
  X(Truncated, TRUNCATED, "a message is larger than the array that should receive it")               \
  X(OutOfMemory, OUT_OF_MEMORY, "memory cannot be had; nothing was overcommitted")                   \
  X(Closed, CLOSED, "the object, or a rank it needs, has been closed")

enum class Status : int {
#define XCCL_STATUS_ENUM(name, c_name, text) name,
  XCCL_STATUS_LIST(XCCL_STATUS_ENUM)
#undef XCCL_STATUS_ENUM
};

inline const char* status_name(Status status) {
  switch (status) {
#define XCCL_STATUS_NAME(name, c_name, text) \
  case Status::name:                         \
    return #name;
    XCCL_STATUS_LIST(XCCL_STATUS_NAME)
#undef XCCL_STATUS_NAME
  }
  return "unknown";
}

inline const char* status_text(Status status) {
  switch (status) {
#define XCCL_STATUS_TEXT(name, c_name, text) \
  case Status::name:                         \
    return text;
    XCCL_STATUS_LIST(XCCL_STATUS_TEXT)
#undef XCCL_STATUS_TEXT
  }
  return "unknown";
}

}  // namespace xccl
