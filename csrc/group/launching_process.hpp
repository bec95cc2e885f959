// Which process launched this rank and its siblings, as /proc tells: what names a job whose launcher gives it no name.
// Called by launch_environment.cpp. It only reads.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace xccl {

using Environment = std::map<std::string, std::string>;

// A text that names the process which started this rank and its siblings, and no other process of this host.
// `names` are the variables that make a rank what it is. A wrapper script between the launcher and this process has
// them too, with the same values; the nearest ancestor that has not is the launcher.
std::string launching_process(const Environment& environment, const std::vector<std::string>& names);

}  // namespace xccl
