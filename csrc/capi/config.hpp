// The structs of xccl.h that begin with their size: defaults, and reading one that another version of the program made.
// And who this rank is, from such a struct or from the launcher. Used by comm.cpp, ep.cpp and plan.cpp.
#pragma once

#include <algorithm>
#include <cstring>

#include "capi/wall.hpp"
#include "memory/provider.hpp"
#include "moe/ep_layout.hpp"

namespace xccl::capi {

// A new field never goes into padding at the end of such a struct, since its size is what tells versions apart.
static_assert(sizeof(xccl_comm_config) == 56 && sizeof(xccl_ep_config) == 96 && sizeof(xccl_plan_load) == 40);

// No program knows less than the first version.
constexpr size_t first_size(const xccl_comm_config&) { return 48; }
constexpr size_t first_size(const xccl_ep_config&) { return 56; }
constexpr size_t first_size(const xccl_plan_load&) { return 40; }

// Writes the defaults, as many as the program knows.
template <class Config>
void init_config(Config* config, size_t size, Config defaults) noexcept {
  if (!config || size < sizeof config->size) return;  // seen when it is used: its size cannot be right
  defaults.size = size;
  std::memset(static_cast<void*>(config), 0, size);
  std::memcpy(static_cast<void*>(config), &defaults, std::min(size, sizeof defaults));
}

// Reads what a program filled in: what it does not know keeps its default, what this library does not know must be 0.
template <class Config>
Config take(const Config* given, const char* name, Config defaults) {
  require(given, name);
  constexpr size_t unreasonable = 4096;
  const size_t size = given->size;
  if (size < first_size(defaults) || size > unreasonable)
    fail(Status::InvalidArgument, name, "->size is ", size, ": call its _init function first");
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (size > sizeof defaults &&
      std::any_of(bytes + sizeof defaults, bytes + size, [](unsigned char byte) { return byte != 0; }))
    fail(Status::InvalidArgument, name,
         " sets a field that this library, which is older than the program's header, does not know");
  std::memcpy(static_cast<void*>(&defaults), given, std::min(size, sizeof defaults));
  return defaults;
}

xccl_comm_config comm_defaults() noexcept;
xccl_ep_config ep_defaults() noexcept;
xccl_plan_load plan_defaults() noexcept;

// Rank, size and job: as the config says, else as the launcher does, else a job of one.
JobSpec identify(const xccl_comm_config& config);
EpShape shape_of(const xccl_ep_config& config);
// The one it gives, or the even one. `shape`: what shape_of made of it.
Placement placement_of(const xccl_ep_config& config, const EpShape& shape, int ranks);

}  // namespace xccl::capi
