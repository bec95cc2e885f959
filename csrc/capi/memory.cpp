// Memory of the application area. Not here: how it is taken (memory/heap.hpp).
#include "capi/handles.hpp"

using namespace xccl;
using namespace xccl::capi;

xccl_status xccl_memory_alloc(xccl_comm* comm, uint64_t bytes, void** memory_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require(memory_out, "memory_out");
    state.communicator->require_usable();
    if (bytes > uint64_t{1} << 60) fail(Status::OutOfMemory, byte_count(bytes), " cannot be had");
    auto block = std::make_unique<Block>(state.communicator->share_world(), bytes);
    void* memory = block->memory();
    const std::lock_guard lock(state.mutex);
    state.blocks.emplace(memory, std::move(block));
    *memory_out = memory;
  });
}

xccl_status xccl_memory_free(xccl_comm* comm, void* memory) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    if (!memory) return;
    const std::lock_guard lock(state.mutex);
    if (state.blocks.erase(memory) == 0)
      fail(Status::InvalidArgument,
           "this memory was not allocated with this communicator, or has been freed");
  });
}
