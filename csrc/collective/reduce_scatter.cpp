#include "collective/reduce_scatter.hpp"

#include <utility>

#include "collective/arguments.hpp"
#include "collective/reduction.hpp"

namespace xccl {
namespace {

// Equal for equal lists; different ones are taken for equal in one of 2^64 cases. (FNV-1a, by words.)
uint64_t hash_of(const uint64_t* numbers, int count) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int i = 0; i < count; ++i) hash = (hash ^ numbers[i]) * 0x100000001b3;
  return hash;
}

}  // namespace

void reduce_scatter(Communicator& comm, const void* mine, void* out, uint64_t count_each, ElementType type,
                    ReduceOp op, double timeout) {
  const uint64_t bytes = bytes_of_elements(count_each, type);
  require_reduce_op(op);
  require_apart(mine, checked_bytes("blocks", static_cast<uint64_t>(comm.size()), bytes), out, bytes,
                static_cast<const std::byte*>(mine) + static_cast<uint64_t>(comm.rank()) * bytes, out);
  const uint64_t rounds = Pieces::of(bytes, Exchange::most_each(comm)).rounds();
  run_exchange(comm, {Collective::reduce_scatter, type, op}, count_each, timeout, [&](Exchange& exchange) {
    exchange.operation().moves(static_cast<uint64_t>(comm.size()) * bytes);
    Reduction reduction(comm, type, op);
    reduce_blocks(comm, exchange, reduction, static_cast<const std::byte*>(mine),
                  static_cast<std::byte*>(out), rounds,
                  [&](int member) { return std::pair(static_cast<uint64_t>(member) * bytes, bytes); });
  });
}

void reduce_scatter_v(Communicator& comm, const void* mine, void* out, const uint64_t* counts,
                      uint64_t row_elements, ElementType type, ReduceOp op, double timeout) {
  const uint64_t row_bytes = bytes_of_elements(row_elements, type);
  PerMember<uint64_t> first(comm.size()), agreed(comm.size() + 1);
  uint64_t total = 0;
  agreed[0] = row_elements;
  for (int member = 0; member < comm.size(); ++member) {
    first[member] = total;
    total += checked_bytes("rows", counts[member], row_bytes);
    agreed[member + 1] = counts[member];
  }
  require_reduce_op(op);
  require_apart(mine, total, out, counts[comm.rank()] * row_bytes,
                static_cast<const std::byte*>(mine) + first[comm.rank()], out);
  const uint64_t rounds = Pieces::of(total, Exchange::most_together(comm)).rounds();
  const auto reduce = [&](Exchange& exchange) {
    exchange.operation().moves(total);
    Reduction reduction(comm, type, op);
    reduce_blocks(comm, exchange, reduction, static_cast<const std::byte*>(mine),
                  static_cast<std::byte*>(out), rounds,
                  [&](int member) { return std::pair(first[member], counts[member] * row_bytes); });
  };
  run_exchange(comm, {Collective::reduce_scatter_v, type, op}, hash_of(agreed.data(), comm.size() + 1),
               timeout, reduce, agreed.data());
}

}  // namespace xccl
