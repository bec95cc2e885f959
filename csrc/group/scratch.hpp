// The scratch memory of a communicator, through which its small collectives pass data (collective/).
#pragma once

#include <cstdint>

namespace xccl {

// One rank's share of one round of an all-gather; two rounds can be under way.
constexpr uint64_t scratch_slot_bytes = 64 * 1024;
constexpr uint64_t scratch_bytes = 2 * scratch_slot_bytes;

}  // namespace xccl
