// Collectives. Not here: how they work (collective/).
#include "capi/handles.hpp"
#include "collective/all_gather.hpp"
#include "collective/all_reduce.hpp"
#include "collective/all_to_all.hpp"
#include "collective/barrier.hpp"
#include "collective/broadcast.hpp"
#include "collective/reduce_scatter.hpp"

using namespace xccl;
using namespace xccl::capi;

static_assert(XCCL_FLOAT32 == static_cast<int>(ElementType::float32) &&
              XCCL_FLOAT16 == static_cast<int>(ElementType::float16) &&
              XCCL_BFLOAT16 == static_cast<int>(ElementType::bfloat16) &&
              XCCL_INT64 == static_cast<int>(ElementType::int64));
static_assert(XCCL_SUM == static_cast<int>(ReduceOp::sum) && XCCL_MAX == static_cast<int>(ReduceOp::max));

namespace {

// Whether there are any bytes at all: as many as matter to whether a pointer may be NULL.
uint64_t some_bytes(uint64_t count, uint64_t each) { return count && each ? 1 : 0; }

struct Reduction {
  ElementType type;
  ReduceOp op;
};

Reduction reduction(int type, int how) {
  if (type < XCCL_FLOAT32 || type > XCCL_INT64)
    fail(Status::InvalidArgument, "dtype is ", type,
         ": expected XCCL_FLOAT32, XCCL_FLOAT16, XCCL_BFLOAT16 or XCCL_INT64");
  if (how != XCCL_SUM && how != XCCL_MAX)
    fail(Status::InvalidArgument, "op is ", how, ": expected XCCL_SUM or XCCL_MAX");
  return {static_cast<ElementType>(type), static_cast<ReduceOp>(how)};
}

void require_elements(const void* memory, uint64_t count, ElementType type, const char* name) {
  require_memory(memory, count, name, element_bytes(type));
}

}  // namespace

xccl_status xccl_comm_barrier(xccl_comm* comm, double timeout) {
  return guarded(__func__, [&] { barrier(*in(comm).communicator, seconds(timeout)); });
}

xccl_status xccl_comm_broadcast(xccl_comm* comm, void* data, uint64_t bytes, int root, double timeout) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(data, bytes, "data");
    broadcast(*state.communicator, data, bytes, root, seconds(timeout));
  });
}

xccl_status xccl_comm_all_gather(xccl_comm* comm, const void* mine, uint64_t bytes, double timeout,
                                 void* all_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(mine, bytes, "mine");
    require_memory(all_out, bytes, "all_out");
    all_gather(*state.communicator, mine, all_out, bytes, seconds(timeout));
  });
}

xccl_status xccl_comm_all_gather_v(xccl_comm* comm, const void* rows, uint64_t count, uint64_t row_bytes,
                                   double timeout, void* rows_out, uint64_t capacity, uint64_t* counts_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(rows, some_bytes(count, row_bytes), "rows");
    require_memory(rows_out, some_bytes(capacity, row_bytes), "rows_out");
    require_memory(counts_out, 1, "counts_out", alignof(uint64_t));
    all_gather_v(*state.communicator, rows, count, row_bytes, room_in(rows_out, capacity), counts_out,
                 seconds(timeout));
  });
}

xccl_status xccl_comm_all_to_all(xccl_comm* comm, const void* mine, uint64_t bytes_each, double timeout,
                                 void* all_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(mine, bytes_each, "mine");
    require_memory(all_out, bytes_each, "all_out");
    all_to_all(*state.communicator, mine, all_out, bytes_each, seconds(timeout));
  });
}

xccl_status xccl_comm_all_to_all_v(xccl_comm* comm, const void* rows, const uint64_t* send_counts,
                                   uint64_t row_bytes, double timeout, void* rows_out, uint64_t capacity,
                                   uint64_t* counts_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(send_counts, 1, "send_counts", alignof(uint64_t));
    for (int rank = 0; rank < state.communicator->size(); ++rank)
      require_memory(rows, some_bytes(send_counts[rank], row_bytes), "rows");
    require_memory(rows_out, some_bytes(capacity, row_bytes), "rows_out");
    require_memory(counts_out, 1, "counts_out", alignof(uint64_t));
    all_to_all_v(*state.communicator, rows, send_counts, row_bytes, room_in(rows_out, capacity), counts_out,
                 seconds(timeout));
  });
}

xccl_status xccl_comm_all_reduce(xccl_comm* comm, const void* mine, uint64_t count, xccl_dtype dtype,
                                 xccl_reduce_op op, double timeout, void* reduced_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    const Reduction how = reduction(number_of(dtype), number_of(op));
    require_elements(mine, count, how.type, "mine");
    require_elements(reduced_out, count, how.type, "reduced_out");
    all_reduce(*state.communicator, mine, reduced_out, count, how.type, how.op, seconds(timeout));
  });
}

xccl_status xccl_comm_reduce_scatter(xccl_comm* comm, const void* mine, uint64_t count_each, xccl_dtype dtype,
                                     xccl_reduce_op op, double timeout, void* reduced_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    const Reduction how = reduction(number_of(dtype), number_of(op));
    require_elements(mine, count_each, how.type, "mine");
    require_elements(reduced_out, count_each, how.type, "reduced_out");
    reduce_scatter(*state.communicator, mine, reduced_out, count_each, how.type, how.op, seconds(timeout));
  });
}

xccl_status xccl_comm_reduce_scatter_v(xccl_comm* comm, const void* mine, const uint64_t* counts,
                                       xccl_dtype dtype, xccl_reduce_op op, double timeout,
                                       void* reduced_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    const Reduction how = reduction(number_of(dtype), number_of(op));
    require_memory(counts, 1, "counts", alignof(uint64_t));
    for (int rank = 0; rank < state.communicator->size(); ++rank)
      require_elements(mine, counts[rank], how.type, "mine");
    require_elements(reduced_out, counts[state.communicator->rank()], how.type, "reduced_out");
    reduce_scatter_v(*state.communicator, mine, reduced_out, counts, 1, how.type, how.op, seconds(timeout));
  });
}
