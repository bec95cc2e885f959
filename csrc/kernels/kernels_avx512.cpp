// The kernels compiled for: avx512 (flags in csrc/CMakeLists.txt).
#include "kernels/kernels_body.hpp"

namespace xccl {
XCCL_DEFINE_KERNELS(avx512)
}  // namespace xccl
