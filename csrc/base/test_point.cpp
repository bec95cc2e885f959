#include "base/test_point.hpp"

#if defined(XCCL_TEST_POINTS)
namespace xccl {
void (*test_point_hook)(const char* name) = nullptr;
}  // namespace xccl
#endif
