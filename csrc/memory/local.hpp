// The provider for ranks that are threads of one process: every region is a private mapping, found through a
// table that the ranks of the job share. ThreadSanitizer sees everything that happens in it, which it
// cannot in memory shared by processes; and tests need no second process.
// Made through providers.cpp.
#pragma once

#include <map>
#include <mutex>

#include "memory/host_memory.hpp"
#include "memory/mapping.hpp"

namespace xccl {

// The regions of all ranks of one local job, by their id. A rank's regions stay until they are freed or the whole job
// has gone, so that a peer which is slow to attach finds them, as it finds the memory file of a process that has ended.
struct LocalSpace {
  struct Entry {
    int rank;
    std::shared_ptr<Mapping> mapping;
  };
  std::mutex mutex;
  uint64_t next_id = 1;
  std::map<uint64_t, Entry> regions;

  // The space of the job of this name: one while any rank of it lives.
  static std::shared_ptr<LocalSpace> of_job(const std::string& job);
};

class Local : public HostMemory {
 public:
  Local(const JobSpec& spec, const Config& config);

  const char* name() const override { return "local"; }
  Region allocate(uint64_t bytes) override;
  void commit(const Region& region, uint64_t offset, uint64_t bytes) override;
  void decommit(const Region& region, uint64_t offset, uint64_t bytes) override;
  void free(const Region& region) override;
  uint64_t committed_bytes() const override;
  Parcel invite() override { return {}; }
  void accept(int, Parcel) override {}
  RemoteRegion attach(int rank, const RegionKey& key) override;
  void detach(RemoteRegion& region) override { region = RemoteRegion{}; }

 private:
  int rank_;
  bool huge_pages_;
  std::shared_ptr<LocalSpace> space_;
  std::map<uint64_t, std::map<uint64_t, uint64_t>>
      committed_;  // region id -> first -> last, for committed_bytes
};

}  // namespace xccl
