// An owned mmap, aligned so that huge pages fit. Used by the providers that live in host memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xccl {

// A multiple of every page size in use on x86-64 and aarch64 (up to 64 KiB): all regions are laid out in it.
constexpr uint64_t page_granule = 64 * 1024;
constexpr uint64_t huge_page = 2 * 1024 * 1024;

class Mapping {
 public:
  // Maps `bytes` of `fd` from its start, shared; or, with fd < 0, private zeroed memory that is taken as it is
  // touched. OutOfMemory when the address space does not suffice.
  Mapping(int fd, uint64_t bytes);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  uint64_t bytes_;
};

// Refuses with OutOfMemory, naming the limit, when committing `bytes` more could get this process killed.
void require_headroom(uint64_t bytes);

}  // namespace xccl
