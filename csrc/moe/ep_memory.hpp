// The region of one ExpertParallel on this rank, cut into its pieces, and the pool of results in it. It lives as
// long as any result array does, longer than the ExpertParallel or the communicator if need be.
// Not here: when a piece may be reused (expert_parallel.cpp), how it is laid out (ep_layout.hpp).
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "group/world.hpp"
#include "memory/high_water.hpp"
#include "moe/ep_layout.hpp"

namespace xccl {

// A piece that others pull from: it may be written again when all have passed call `used_by`.
struct PulledPiece {
  HighWater memory;
  uint64_t used_by = 0;
};

struct ResultSlot {
  HighWater x, out, quantised;
  uint64_t used_by = 0;             // the latest combine that others pull from this slot
  std::atomic<bool> leased{false};  // by a result, or by an array of one
};

class EpMemory {
 public:
  EpMemory(std::shared_ptr<World> world, const EpShape& shape, const Placement& placement, int rank);
  ~EpMemory();
  EpMemory(const EpMemory&) = delete;
  EpMemory& operator=(const EpMemory&) = delete;

  const Region& region() const { return region_; }
  // Whether memory lies in the results of this or any other ExpertParallel of the process.
  static bool any_result_overlaps(const void* memory, uint64_t bytes);
  PulledPiece input[record_depth], staging[record_depth], route[record_depth], bases[record_depth];
  std::vector<std::unique_ptr<ResultSlot>> results;
  // Others may still pull from here: the memory stays until the process ends.
  bool still_pulled = false;

 private:
  std::shared_ptr<World> world_;
  Region region_;
};

// Holds a result slot; the last copy to go gives it back to the pool.
class Lease {
 public:
  Lease(std::shared_ptr<EpMemory> memory, ResultSlot& slot) : memory_(std::move(memory)), slot_(slot) {}
  // release: what was read from the slot was read before its next owner writes.
  ~Lease() { slot_.leased.store(false, std::memory_order_release); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  ResultSlot& slot() { return slot_; }

 private:
  std::shared_ptr<EpMemory> memory_;
  ResultSlot& slot_;
};

}  // namespace xccl
