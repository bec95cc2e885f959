// All ranks write and await records of all, not only of the root: that is what lets a place be written again.
#include "collective/broadcast.hpp"

#include "collective/exchange.hpp"

namespace xccl {

void broadcast(Communicator& comm, void* data, uint64_t bytes, int root, double timeout) {
  if (root < 0 || root >= comm.size())
    fail(Status::InvalidArgument, "root=", root, ": expected 0 to ", comm.size() - 1);
  auto* at = static_cast<std::byte*>(data);
  Pieces pieces = Pieces::of(bytes, Exchange::most_alike(comm));
  const ExchangeCall call{Collective::broadcast, {}, {}, static_cast<uint32_t>(root)};
  run_exchange(comm, call, bytes, timeout, [&](Exchange& exchange) {
    exchange.operation().moves(comm.rank() == root ? bytes : 0);
    exchange.expect(bytes);
    exchange.lend(comm.rank() == root ? at : nullptr, bytes);
    for (uint64_t round = 0; round < pieces.rounds(); ++round) {
      std::byte* here = at + pieces.first(round);
      exchange.publish_alike({here, comm.rank() == root ? pieces.bytes(round) : 0});
      if (round == 0 && exchange.lends(root)) pieces = Pieces::of(bytes, bytes);
      const uint64_t part = pieces.bytes(round);
      if (comm.rank() != root) {
        exchange.await(root);
        exchange.pull(root, here, part);
      }
      exchange.await_all();
      exchange.finish();
    }
    exchange.conclude();
  });
}

}  // namespace xccl
