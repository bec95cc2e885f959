#include "collective/reduce_scatter.hpp"

#include <utility>

#include "collective/arguments.hpp"
#include "collective/reduction.hpp"

namespace xccl {
namespace {

// Equal for equal lists; different ones differ in one of 2^64 cases. (FNV-1a, by words.)
uint64_t hash_of(const uint64_t* counts, int size) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int member = 0; member < size; ++member) hash = (hash ^ counts[member]) * 0x100000001b3;
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
  uint64_t calls = comm.collective_seq();
  comm.operate("reduce_scatter", calls, timeout, [&](Operation& operation) {
    Exchange exchange(comm, operation, {Collective::reduce_scatter, type, op}, count_each);
    Reduction reduction(comm, type, op);
    reduce_blocks(comm, exchange, reduction, static_cast<const std::byte*>(mine),
                  static_cast<std::byte*>(out), rounds,
                  [&](int member) { return std::pair(static_cast<uint64_t>(member) * bytes, bytes); });
  });
}

void reduce_scatter_v(Communicator& comm, const void* mine, void* out, const uint64_t* counts,
                      ElementType type, ReduceOp op, double timeout) {
  PerMember<uint64_t> first(comm.size());
  uint64_t total = 0;
  for (int member = 0; member < comm.size(); ++member) {
    first[member] = total;
    total += bytes_of_elements(counts[member], type);
  }
  require_reduce_op(op);
  require_apart(mine, total, out, counts[comm.rank()] * element_bytes(type),
                static_cast<const std::byte*>(mine) + first[comm.rank()], out);
  const uint64_t rounds = Pieces::of(total, Exchange::most_together(comm)).rounds();
  uint64_t calls = comm.collective_seq();
  comm.operate("reduce_scatter_v", calls, timeout, [&](Operation& operation) {
    Exchange exchange(comm, operation, {Collective::reduce_scatter_v, type, op}, hash_of(counts, comm.size()),
                      counts);
    Reduction reduction(comm, type, op);
    reduce_blocks(comm, exchange, reduction, static_cast<const std::byte*>(mine),
                  static_cast<std::byte*>(out), rounds,
                  [&](int member) { return std::pair(first[member], counts[member] * element_bytes(type)); });
  });
}

}  // namespace xccl
