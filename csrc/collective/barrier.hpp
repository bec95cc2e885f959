// Barrier: nobody returns before everybody has called.
#pragma once

#include "group/communicator.hpp"

namespace xccl {

// timeout < 0: the communicator's default. Errors: Timeout, PeerLost, PeerFailed, Closed.
void barrier(Communicator& comm, double timeout = -1);

}  // namespace xccl
