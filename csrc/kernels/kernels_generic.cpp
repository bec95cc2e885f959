// The kernels compiled for: the baseline of the architecture (SSE2, NEON).
#include "kernels/kernels_body.hpp"

namespace xccl {
XCCL_DEFINE_KERNELS(generic)
}  // namespace xccl
