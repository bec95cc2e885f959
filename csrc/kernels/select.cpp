// Which compiled kernels this processor can run, and the floating-point environment they need.
#include <cfenv>
#include <cstring>
#include <new>

#include "base/error.hpp"
#include "kernels/kernels.hpp"

namespace xccl {

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> out;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    out.push_back(&avx512_kernels);
  if (__builtin_cpu_supports("avx2")) out.push_back(&avx2_kernels);
#endif
  out.push_back(&generic_kernels);
  return out;
}

const Kernels& select_kernels(const std::string& name) {
  const auto usable = usable_kernels();
  if (name == "auto") return *usable.front();
  std::string names = "auto";
  for (const Kernels* kernels : usable) {
    if (name == kernels->name) return *kernels;
    names += text(", ", kernels->name);
  }
  fail(Status::InvalidArgument, "XCCL_KERNELS=\"", name, "\": this processor runs ", names);
}

FloatEnvironment::FloatEnvironment() {
  static_assert(sizeof(fenv_t) <= sizeof saved_);
  fenv_t now;
  std::fegetenv(&now);
  std::memcpy(saved_, &now, sizeof now);
  // The default environment rounds to nearest and, with the C libraries of x86-64 and aarch64, clears flush-to-zero.
  std::fesetenv(FE_DFL_ENV);
}

FloatEnvironment::~FloatEnvironment() {
  fenv_t before;
  std::memcpy(&before, saved_, sizeof before);
  std::fesetenv(&before);
}

}  // namespace xccl
