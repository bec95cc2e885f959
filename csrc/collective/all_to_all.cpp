#include "collective/all_to_all.hpp"

#include "collective/arguments.hpp"
#include "collective/per_member.hpp"

namespace xccl {

void all_to_all(Communicator& comm, const void* mine, void* all, uint64_t bytes_each, double timeout) {
  const auto* from = static_cast<const std::byte*>(mine);
  auto* to = static_cast<std::byte*>(all);
  const uint64_t bytes = checked_bytes("pieces", static_cast<uint64_t>(comm.size()), bytes_each);
  require_apart(from, bytes, to, bytes);
  const auto own = static_cast<uint64_t>(comm.rank()) * bytes_each;
  Pieces pieces = Pieces::of(bytes_each, Exchange::most_each(comm));
  run_exchange(comm, {Collective::all_to_all}, bytes_each, timeout, [&](Exchange& exchange) {
    exchange.operation().moves(bytes);
    exchange.expect(bytes);
    exchange.lend(from, bytes);
    for (uint64_t round = 0; round < pieces.rounds(); ++round) {
      const uint64_t first = pieces.first(round);
      exchange.publish([&](int member) {
        return Given{from + static_cast<uint64_t>(member) * bytes_each + first, pieces.bytes(round)};
      });
      if (round == 0 && exchange.all_lend()) pieces = Pieces::of(bytes_each, bytes_each);
      const uint64_t part = pieces.bytes(round);
      if (part) std::memcpy(to + own + first, from + own + first, part);
      for (int step = 1; step < comm.size(); ++step) {
        const int member = (comm.rank() + step) % comm.size();
        exchange.await(member);
        exchange.pull(member, to + static_cast<uint64_t>(member) * bytes_each + first, part);
      }
      exchange.finish();
    }
    exchange.conclude();
  });
}

void all_to_all_v(Communicator& comm, const void* rows, const uint64_t* send_counts, uint64_t row_bytes,
                  const Room& room, uint64_t* recv_counts, double timeout) {
  const auto* from = static_cast<const std::byte*>(rows);
  PerMember<uint64_t> first(comm.size());  // byte of `rows` where a member's begin
  uint64_t begun = 0, sent = 0;            // the latter: to others
  for (int member = 0; member < comm.size(); ++member) {
    const uint64_t bytes = checked_bytes("rows", send_counts[member], row_bytes);
    first[member] = begun;
    begun += bytes;
    if (member != comm.rank()) sent += bytes;
  }
  require_apart(from, begun, room.memory, checked_bytes("rows", room.capacity, row_bytes));
  const uint64_t count_bytes = static_cast<uint64_t>(comm.size()) * sizeof(uint64_t);
  require_apart(send_counts, count_bytes, recv_counts, count_bytes);
  const uint64_t rounds = Pieces::of(sent, Exchange::most_together(comm)).rounds();
  const uint64_t own = send_counts[comm.rank()];
  VariableRows received(comm, row_bytes, room, recv_counts);
  run_exchange(comm, {Collective::all_to_all_v}, row_bytes, timeout, [&](Exchange& exchange) {
    exchange.operation().moves(begun);
    for (uint64_t round = 0; received.needs(round); ++round) {
      const auto give = [&](int member) {
        const Pieces pieces = Pieces::in(send_counts[member] * row_bytes, rounds);
        return Given{from + first[member] + pieces.first(round), pieces.bytes(round), send_counts[member]};
      };
      exchange.publish(give, rounds);
      received.receive(exchange, round, {from + first[comm.rank()], own * row_bytes, own}, rounds);
    }
  });
  received.settle();
}

}  // namespace xccl
