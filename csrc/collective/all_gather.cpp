#include "collective/all_gather.hpp"

#include "collective/arguments.hpp"

namespace xccl {

void all_gather(Communicator& comm, const void* mine, void* all, uint64_t bytes, double timeout,
                Collective on_behalf_of) {
  const auto* from = static_cast<const std::byte*>(mine);
  auto* to = static_cast<std::byte*>(all);
  require_apart(from, bytes, to, checked_bytes("shares", static_cast<uint64_t>(comm.size()), bytes), from,
                to + static_cast<uint64_t>(comm.rank()) * bytes);
  Pieces pieces = Pieces::of(bytes, Exchange::most_alike(comm));
  run_exchange(comm, {on_behalf_of}, bytes, timeout, [&](Exchange& exchange) {
    exchange.operation().moves(bytes);
    exchange.expect(static_cast<uint64_t>(comm.size()) * bytes);
    exchange.lend(from, bytes);
    for (uint64_t round = 0; round < pieces.rounds(); ++round) {
      const uint64_t first = pieces.first(round);
      exchange.publish_alike({from + first, pieces.bytes(round)});
      if (round == 0 && exchange.all_lend()) pieces = Pieces::of(bytes, bytes);
      const uint64_t part = pieces.bytes(round);
      std::byte* own = to + static_cast<uint64_t>(comm.rank()) * bytes + first;
      if (part && own != from + first) std::memcpy(own, from + first, part);
      for (int step = 1; step < comm.size(); ++step) {
        const int member = (comm.rank() + step) % comm.size();
        exchange.await(member);
        exchange.pull(member, to + static_cast<uint64_t>(member) * bytes + first, part);
      }
      exchange.finish();
    }
    exchange.conclude();
  });
}

void all_gather_v(Communicator& comm, const void* rows, uint64_t count, uint64_t row_bytes, const Room& room,
                  uint64_t* counts, double timeout) {
  const auto* from = static_cast<const std::byte*>(rows);
  const uint64_t bytes = checked_bytes("rows", count, row_bytes);
  require_apart(from, bytes, room.memory, checked_bytes("rows", room.capacity, row_bytes));
  const Pieces pieces = Pieces::of(bytes, Exchange::most_alike(comm));
  VariableRows received(comm, row_bytes, room, counts);
  run_exchange(comm, {Collective::all_gather_v}, row_bytes, timeout, [&](Exchange& exchange) {
    exchange.operation().moves(bytes);
    for (uint64_t round = 0; received.needs(round); ++round) {
      exchange.publish_alike({from + pieces.first(round), pieces.bytes(round), count}, pieces.rounds());
      received.receive(exchange, round, {from, pieces.total, count}, pieces.rounds());
    }
  });
  received.settle();
}

}  // namespace xccl
