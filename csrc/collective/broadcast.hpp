// Broadcast: every rank gets the bytes of one, the root, which copies them once to where the others reach them.
// Called by the bindings.
#pragma once

#include <cstdint>

#include "group/communicator.hpp"

namespace xccl {

// `data`: `bytes` of them, read on the root, written on the others. `bytes` and `root` are the same on every rank:
// Mismatch otherwise. InvalidArgument for a root that is no rank. Other errors: Timeout, PeerLost, PeerFailed, Closed,
// OutOfMemory. timeout < 0: the default.
void broadcast(Communicator& comm, void* data, uint64_t bytes, int root, double timeout = -1);

}  // namespace xccl
