// All-gather: every rank gives some bytes and gets those of all, in rank order. Each copies its share once to where
// the others reach it, and pulls from each. Called by the bindings and by moe/.
#pragma once

#include <cstdint>

#include "collective/variable.hpp"
#include "group/communicator.hpp"

namespace xccl {

// `mine`: bytes of this rank. `all`: size() times `bytes`; `mine` may be this rank's own place in it. `bytes` is the
// same on every rank: Mismatch otherwise, naming the ranks that differ. Other errors: Timeout, PeerLost, PeerFailed,
// Closed, OutOfMemory. timeout < 0: the default.
// `on_behalf_of`: the call that errors name, where the library itself needs the exchange.
void all_gather(Communicator& comm, const void* mine, void* all, uint64_t bytes, double timeout = -1,
                Collective on_behalf_of = Collective::all_gather);

// Every rank gives `count` rows of `row_bytes` bytes, which is the same on all ranks: Mismatch otherwise. The rows of
// all go, in rank order, where `room` says, and into `counts`, size() of them, how many each rank gave.
// Errors as above, and what `room` throws.
void all_gather_v(Communicator& comm, const void* rows, uint64_t count, uint64_t row_bytes, const Room& room,
                  uint64_t* counts, double timeout = -1);

}  // namespace xccl
