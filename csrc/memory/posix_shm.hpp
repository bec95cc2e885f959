// The provider for processes of one host: one memory file (memfd) per rank.
// Made through providers.cpp. docs/memory-layout.md shows the file.
//
// The file has no name, so nothing can be left behind and /dev/shm's size does not matter. It is made as large
// as the address space reserved for the rank, sparse, once, and sealed against growing and shrinking, so that a
// peer can neither SIGBUS the others nor be asked for a descriptor again: regions made later are ranges of the
// same file, which every rank has mapped since it joined.
#pragma once

#include <map>
#include <mutex>

#include "base/parcel.hpp"
#include "memory/host_memory.hpp"
#include "memory/mapping.hpp"
#include "memory/range_allocator.hpp"

namespace xccl {

class PosixShm : public HostMemory {
 public:
  PosixShm(const JobSpec& spec, const Config& config);

  const char* name() const override { return "posix_shm"; }
  Region allocate(uint64_t bytes) override;
  void commit(const Region& region, uint64_t offset, uint64_t bytes) override;
  void decommit(const Region& region, uint64_t offset, uint64_t bytes) override;
  void free(const Region& region) override;
  uint64_t committed_bytes() const override;
  Parcel invite() override;
  void accept(int rank, Parcel parcel) override;
  RemoteRegion attach(int rank, const RegionKey& key) override;
  void detach(RemoteRegion& region) override;

  static std::string why_not();
  // Address space reserved per rank when the user does not say: sparse, so generous.
  static uint64_t default_address_space(int size);

 private:
  void take(uint64_t offset, uint64_t bytes);
  void take_huge_pages(uint64_t first, uint64_t last);

  int rank_;
  bool huge_pages_;
  Fd file_;
  std::shared_ptr<Mapping> own_;
  std::mutex mutex_;  // of ranges_: an array may be freed by another thread than the communicator's
  RangeAllocator ranges_;
  std::map<int, std::shared_ptr<Mapping>> peers_;
};

}  // namespace xccl
