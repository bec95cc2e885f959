// The row kernels compiled for: the baseline of the architecture (SSE2, NEON).
#include "moe/kernels/weighted_sum_body.hpp"

namespace xccl {
XCCL_DEFINE_KERNELS(generic_kernels, "generic")
}  // namespace xccl
