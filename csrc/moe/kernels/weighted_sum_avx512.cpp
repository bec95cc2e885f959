// The row kernels compiled for: avx512 (flags in csrc/CMakeLists.txt).
#include "moe/kernels/weighted_sum_body.hpp"

namespace xccl {
XCCL_DEFINE_KERNELS(avx512_kernels, "avx512")
}  // namespace xccl
