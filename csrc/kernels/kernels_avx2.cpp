// The kernels compiled for: avx2 (flags in csrc/CMakeLists.txt).
#include "kernels/kernels_body.hpp"

namespace xccl {
XCCL_DEFINE_KERNELS(avx2)
}  // namespace xccl
