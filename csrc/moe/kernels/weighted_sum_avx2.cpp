// The row kernels compiled for: avx2 (flags in csrc/CMakeLists.txt).
#include "moe/kernels/weighted_sum_body.hpp"

namespace xccl {
XCCL_DEFINE_KERNELS(avx2_kernels, "avx2")
}  // namespace xccl
