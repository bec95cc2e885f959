// All-reduce: every rank gets the reduction of all ranks' elements. Called by the bindings.
//
// Two algorithms, chosen by size and number of ranks. Up to 8 KiB, or two ranks: everybody pulls
// everything and reduces it all. Else: everybody reduces a share of the elements and pulls the others' results. Both
// reduce every element in rank order with the same kernels, so they give the same bits, on all ranks, every time.
#pragma once

#include <cstdint>

#include "group/communicator.hpp"
#include "kernels/kernels.hpp"

namespace xccl {

// `mine`, `out`: `count` elements each; they may be the same, else they do not overlap. Arithmetic: kernels/kernels.hpp.
// Mismatch unless all ranks give the same count, type and op. Other errors: Timeout, PeerLost, PeerFailed, Closed,
// OutOfMemory, InvalidArgument. timeout < 0: the default.
void all_reduce(Communicator& comm, const void* mine, void* out, uint64_t count, ElementType type,
                ReduceOp op, double timeout = -1);

}  // namespace xccl
