#include "collective/all_reduce.hpp"

#include <utility>

#include "collective/arguments.hpp"
#include "collective/reduction.hpp"

namespace xccl {
namespace {

// Sharing the work costs a second synchronisation. From here on it is repaid, measured with 4 and with 8 ranks on two
// cores. Two ranks read as much either way.
constexpr uint64_t bytes_worth_sharing = 8 * 1024;

bool shares(const Communicator& comm, uint64_t bytes) {
  return comm.size() > 2 && bytes > bytes_worth_sharing;
}

void reduce_everywhere(Communicator& comm, Exchange& exchange, Reduction& reduction, const std::byte* mine,
                       std::byte* out, uint64_t bytes) {
  const Pieces pieces = Pieces::of(bytes, Exchange::most_alike(comm));
  for (uint64_t round = 0; round < pieces.rounds(); ++round) {
    const uint64_t first = pieces.first(round), part = pieces.bytes(round);
    exchange.publish_alike({mine + first, part});
    reduction.receive(exchange, mine + first, out + first, part);
    exchange.finish();
  }
}

// Chunk after chunk: reduce a share of it, then gather the shares. `mine` may be `out`, since gathering a chunk
// writes nothing of those that follow.
void reduce_shares(Communicator& comm, Exchange& exchange, Reduction& reduction, const std::byte* mine,
                   std::byte* out, uint64_t bytes) {
  const auto size = static_cast<uint64_t>(comm.size());
  const Pieces chunks = Pieces::of(bytes, Exchange::most_each(comm) * size);
  for (uint64_t chunk = 0; chunk < chunks.rounds(); ++chunk) {
    const uint64_t first = chunks.first(chunk);
    const Pieces shares = Pieces::in(chunks.bytes(chunk), size);
    const auto share_of = [&](int member) {
      const auto number = static_cast<uint64_t>(member);
      return std::pair(first + shares.first(number), shares.bytes(number));
    };
    const auto [own, own_bytes] = share_of(comm.rank());
    exchange.publish([&](int member) {
      const auto [at, length] = share_of(member);
      return Given{mine + at, length};
    });
    reduction.receive(exchange, mine + own, out + own, own_bytes);
    exchange.finish();

    exchange.publish_alike({out + own, own_bytes});
    for (int step = 1; step < comm.size(); ++step) {
      const int member = (comm.rank() + step) % comm.size();
      exchange.await(member);
      const auto [at, length] = share_of(member);
      exchange.pull(member, out + at, length);
    }
    exchange.finish();
  }
}

}  // namespace

void all_reduce(Communicator& comm, const void* mine, void* out, uint64_t count, ElementType type,
                ReduceOp op, double timeout) {
  const uint64_t bytes = bytes_of_elements(count, type);
  require_reduce_op(op);
  require_apart(mine, bytes, out, bytes, mine, out);
  const auto* from = static_cast<const std::byte*>(mine);
  auto* to = static_cast<std::byte*>(out);
  run_exchange(comm, {Collective::all_reduce, type, op}, count, timeout, [&](Exchange& exchange) {
    exchange.operation().moves(bytes);
    Reduction reduction(comm, type, op);
    if (shares(comm, bytes))
      reduce_shares(comm, exchange, reduction, from, to, bytes);
    else
      reduce_everywhere(comm, exchange, reduction, from, to, bytes);
  });
}

}  // namespace xccl
