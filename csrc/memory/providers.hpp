// The table of providers. A new one is a file and a line here (docs/adding-a-provider.md).
#pragma once

#include <vector>

#include "memory/provider.hpp"

namespace xccl {

const std::vector<ProviderEntry>& providers();

// InvalidArgument when there is none of that name; Failure when it cannot be used here: each says what there is.
std::unique_ptr<Provider> make_provider(const JobSpec& spec, const Config& config);

#if defined(XCCL_TEST_POINTS)
// Set by a native test before its ranks start: what stands between XCCL and the provider, to count what is asked of it.
extern std::unique_ptr<Provider> (*provider_wrapper)(std::unique_ptr<Provider>);
#endif

}  // namespace xccl
