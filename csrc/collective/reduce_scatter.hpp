// Reduce-scatter: a vector of all ranks' elements is reduced, and every rank gets a block of the result. Each copies to
// where others reach it what they reduce, and reduces its own block, in rank order (reduction.hpp). Called by the bindings.
#pragma once

#include <cstdint>

#include "group/communicator.hpp"
#include "kernels/kernels.hpp"

namespace xccl {

// `mine`: size() blocks of `count_each` elements; `out`: the reduction of block rank(). `out` may be that block itself;
// else they do not overlap. Sums of floats: in rank order, each step in float32, rounded once to the type. Arithmetic:
// kernels/kernels.hpp. Mismatch unless all ranks give the same count_each, type and op. Other errors: Timeout,
// PeerLost, PeerFailed, Closed, OutOfMemory, InvalidArgument. timeout < 0: the default.
void reduce_scatter(Communicator& comm, const void* mine, void* out, uint64_t count_each, ElementType type,
                    ReduceOp op, double timeout = -1);

// The same with blocks of counts[r] rows of `row_elements` elements for rank r, zero included. Mismatch, naming the entry,
// unless all ranks give the same counts, and rows of the same length.
void reduce_scatter_v(Communicator& comm, const void* mine, void* out, const uint64_t* counts,
                      uint64_t row_elements, ElementType type, ReduceOp op, double timeout = -1);

}  // namespace xccl
