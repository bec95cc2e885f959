#include "memory/providers.hpp"

#include <utility>

#include "base/error.hpp"
#include "memory/local.hpp"
#include "memory/posix_shm.hpp"

namespace xccl {

const std::vector<ProviderEntry>& providers() {
  static const std::vector<ProviderEntry> table = {
      {"posix_shm", "processes of one host, one memory file each", PosixShm::why_not,
       [](const JobSpec& spec, const Config& config) -> std::unique_ptr<Provider> {
         return std::make_unique<PosixShm>(spec, config);
       }},
      {"local", "threads of one process", [] { return std::string(); },
       [](const JobSpec& spec, const Config& config) -> std::unique_ptr<Provider> {
         return std::make_unique<Local>(spec, config);
       }},
  };
  return table;
}

#if defined(XCCL_TEST_POINTS)
std::unique_ptr<Provider> (*provider_wrapper)(std::unique_ptr<Provider>) = nullptr;
#endif

namespace {
std::unique_ptr<Provider> wrapped(std::unique_ptr<Provider> provider) {
#if defined(XCCL_TEST_POINTS)
  if (provider_wrapper) return provider_wrapper(std::move(provider));
#endif
  return provider;
}
}  // namespace

std::unique_ptr<Provider> make_provider(const JobSpec& spec, const Config& config) {
  std::string names;
  for (const ProviderEntry& entry : providers()) {
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
    if (config.provider != entry.name) continue;
    if (const std::string reason = entry.why_not(); !reason.empty())
      fail(Status::Failure, "provider ", entry.name, " cannot be used on this machine: ", reason);
    return wrapped(entry.make(spec, config));
  }
  fail(Status::InvalidArgument, "provider \"", config.provider, "\" does not exist; there are: ", names);
}

}  // namespace xccl
