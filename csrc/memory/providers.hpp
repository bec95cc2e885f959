// The table of providers. A new one is a file and a line here (docs/adding-a-provider.md).
#pragma once

#include <vector>

#include "memory/provider.hpp"

namespace xccl {

const std::vector<ProviderEntry>& providers();

// InvalidArgument when there is none of that name; Failure when it cannot be used here: each says what there is.
std::unique_ptr<Provider> make_provider(const JobSpec& spec, const Config& config);

}  // namespace xccl
