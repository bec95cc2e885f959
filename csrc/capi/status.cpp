// Codes and versions. The codes of xccl.h are held here to the one list of statuses: a code that is missing, is new or
// has another number does not compile.
#include "base/status.hpp"

#include "capi/xccl.h"

#define XCCL_STATUS_SAME(name, c_name, text)                                             \
  static_assert(static_cast<int>(XCCL_##c_name) == static_cast<int>(xccl::Status::name), \
                "xccl.h: XCCL_" #c_name " is not the status of base/status.hpp");
XCCL_STATUS_LIST(XCCL_STATUS_SAME)
#undef XCCL_STATUS_SAME

const char* xccl_status_name(xccl_status status) {
  switch (status) {  // without a default: -Werror=switch finds a code that the list lacks
    case XCCL_PENDING:
      return "XCCL_PENDING";
#define XCCL_STATUS_CASE(name, c_name, text) \
  case XCCL_##c_name:                        \
    return "XCCL_" #c_name;
      XCCL_STATUS_LIST(XCCL_STATUS_CASE)
#undef XCCL_STATUS_CASE
  }
  return "unknown";
}

const char* xccl_status_text(xccl_status status) {
  if (status == XCCL_PENDING) return "it has not happened yet";
  return xccl::status_text(static_cast<xccl::Status>(status));
}

const char* xccl_version(void) { return XCCL_VERSION; }

int xccl_version_at_least(int major, int minor, int patch) {
  return XCCL_HEADER_AT_LEAST(major, minor, patch);
}
