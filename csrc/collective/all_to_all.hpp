// All-to-all: every rank gives every rank something else. Each copies what the others need to where they reach it, and
// pulls from each. Called by the bindings.
#pragma once

#include <cstdint>

#include "collective/variable.hpp"
#include "group/communicator.hpp"

namespace xccl {

// `mine`, `all`: size() times `bytes_each`, which do not overlap; piece r of `mine` becomes piece rank() of `all` on rank
// r. `bytes_each` is the same on every rank: Mismatch otherwise. Other errors: Timeout, PeerLost, PeerFailed, Closed,
// OutOfMemory. timeout < 0: the default.
void all_to_all(Communicator& comm, const void* mine, void* all, uint64_t bytes_each, double timeout = -1);

// `rows`: rows of `row_bytes` bytes (the same on all ranks: Mismatch otherwise), of which the first send_counts[0] are
// for rank 0, the next send_counts[1] for rank 1, and so on; zero is normal. Those that come go, in rank order, where
// `room` says, and into `recv_counts`, size() of them, how many came from each. Errors as above, and what `room` throws.
void all_to_all_v(Communicator& comm, const void* rows, const uint64_t* send_counts, uint64_t row_bytes,
                  const Room& room, uint64_t* recv_counts, double timeout = -1);

}  // namespace xccl
