// Reducing what all ranks gave in a round of an exchange: always in rank order, by the kernels, so that the bits
// depend neither on who came first nor on how the elements were cut into rounds and shares.
// Used by reduce_scatter.cpp and all_reduce.cpp.
#pragma once

#include <vector>

#include "collective/exchange.hpp"
#include "collective/per_member.hpp"

namespace xccl {

class Reduction {
 public:
  Reduction(Communicator& comm, ElementType type, ReduceOp op)
      : comm_(comm), type_(type), op_(op), kernel_(comm.kernels().reduce(type, op)), rows_(comm.size()) {}

  // Awaits all; then out = the reduction of `bytes` bytes from every rank, this rank's being at `own` (which may be
  // `out`). What others gave is read where it lies, or fetched first.
  void receive(Exchange& exchange, const std::byte* own, std::byte* out, uint64_t bytes);

 private:
  Communicator& comm_;
  const ElementType type_;
  const ReduceOp op_;
  const Reduce kernel_;
  PerMember<const void*> rows_;
  std::vector<std::byte> fetched_;  // where there are no addresses
};

// Reduces a vector of which every rank owns a block, and gives each rank the result for its own, at `out`. `block(r)` says
// where rank r's block begins and how long it is, in bytes of `mine`.
template <class Block>
void reduce_blocks(Communicator& comm, Exchange& exchange, Reduction& reduction, const std::byte* mine,
                   std::byte* out, uint64_t rounds, Block block) {
  const auto [own_first, own_bytes] = block(comm.rank());
  for (uint64_t round = 0; round < rounds; ++round) {
    exchange.publish([&](int member) {
      const auto [first, bytes] = block(member);
      const Pieces pieces = Pieces::in(bytes, rounds);
      return Given{mine + first + pieces.first(round), pieces.bytes(round)};
    });
    const Pieces own = Pieces::in(own_bytes, rounds);
    reduction.receive(exchange, mine + own_first + own.first(round), out + own.first(round),
                      own.bytes(round));
    exchange.finish();
  }
}

}  // namespace xccl
