#include "memory/mapping.hpp"

#include <sys/mman.h>

#include <cerrno>

#include "base/error.hpp"
#include "base/machine.hpp"
#include "memory/range_allocator.hpp"

namespace xccl {

Mapping::Mapping(int fd, uint64_t bytes) : bytes_(round_up(bytes, page_granule)) {
  // Reserve a little more, keep the aligned part: the kernel maps huge pages only at aligned addresses.
  const uint64_t reserve = bytes_ + huge_page;
  void* hole = mmap(nullptr, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (hole == MAP_FAILED)
    fail(Status::OutOfMemory, "cannot reserve ", byte_count(reserve),
         " of address space; raise the limit (ulimit -v) or set XCCL_ADDRESS_SPACE lower");
  const auto start = reinterpret_cast<uint64_t>(hole);
  const uint64_t aligned = round_up(start, huge_page);
  if (aligned > start) munmap(hole, aligned - start);
  const uint64_t tail = start + reserve - (aligned + bytes_);
  if (tail) munmap(reinterpret_cast<void*>(aligned + bytes_), tail);

  const int flags = MAP_FIXED | MAP_NORESERVE | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
  void* base = mmap(reinterpret_cast<void*>(aligned), bytes_, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (base == MAP_FAILED) {
    const int error = errno;
    munmap(reinterpret_cast<void*>(aligned), bytes_);
    if (error == ENOMEM)
      fail(Status::OutOfMemory, "cannot map ", byte_count(bytes_),
           ": the kernel allows this process no more mappings (vm.max_map_count) or address space (ulimit "
           "-v)");
    fail_errno("mapping a rank's memory", error);
  }
  base_ = static_cast<std::byte*>(base);
  madvise(base_, bytes_, MADV_DONTDUMP);  // a core file of the reserved space would be terabytes
}

Mapping::~Mapping() { munmap(base_, bytes_); }

void require_headroom(uint64_t bytes) {
  const MemoryHeadroom headroom = memory_headroom();
  // A little is left for everybody else: page tables, stacks, the interpreter.
  constexpr uint64_t margin = 16 * 1024 * 1024;
  if (bytes + margin <= headroom.bytes) return;
  fail(Status::OutOfMemory, byte_count(bytes), " more are needed but only ", byte_count(headroom.bytes),
       " can be had (", headroom.limited_by, ", of which ", byte_count(margin), " are kept free)");
}

}  // namespace xccl
