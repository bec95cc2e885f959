// All-gather: every rank gives `bytes` bytes and gets those of all, in rank order.
#pragma once

#include <cstdint>

#include "group/communicator.hpp"

namespace xccl {

// `mine`: bytes of this rank. `all`: size() times `bytes`. `bytes` is the same on every rank: Mismatch otherwise,
// naming the ranks that differ. Other errors: Timeout, PeerLost, PeerFailed, Closed. timeout < 0: the default.
// `on_behalf_of`: the call that errors name, where the library itself needs the exchange.
void all_gather(Communicator& comm, const void* mine, void* all, uint64_t bytes, double timeout = -1,
                const char* on_behalf_of = "all_gather");

}  // namespace xccl
