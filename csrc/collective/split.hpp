// Split: sub-groups of a communicator that work at the same time, each with a communicator of its own.
#pragma once

#include <memory>

#include "group/communicator.hpp"

namespace xccl {

// Collective on `parent`. Members that give the same `color` form a group, ordered by (key, rank in parent), as MPI's
// MPI_Comm_split; color -1: in none, and null is returned. Its lines in the control segments are freed when all of its
// members have closed it. Errors: InvalidArgument for another negative color; those of all_gather; OutOfMemory.
std::shared_ptr<Communicator> split(const std::shared_ptr<Communicator>& parent, int color, int key,
                                    double timeout = -1);

}  // namespace xccl
