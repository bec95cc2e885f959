// Named steps at which a test may interfere: delay this rank, make it fail, or kill it. Compiled in only for the native
// tests (XCCL_TEST_POINTS); in what users install the macro is empty. docs/crash-matrix.md shows what the other ranks
// then experience, at each of them: a new step gets a row in tests/crash_matrix.py.
#pragma once

#if defined(XCCL_TEST_POINTS)
namespace xccl {
// Set by a test before its ranks start; called with the name of the step.
extern void (*test_point_hook)(const char* name);
}  // namespace xccl
#define XCCL_TEST_POINT(name)                                   \
  do {                                                          \
    if (::xccl::test_point_hook) ::xccl::test_point_hook(name); \
  } while (false)
#else
#define XCCL_TEST_POINT(name) \
  do {                        \
  } while (false)
#endif
