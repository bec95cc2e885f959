#include "moe/ep_memory.hpp"

#include <mutex>
#include <set>

namespace xccl {
namespace {

struct Living {
  std::mutex mutex;
  std::set<const EpMemory*> all;
};
Living& living() {
  static Living one;
  return one;
}

}  // namespace

EpMemory::EpMemory(std::shared_ptr<World> world, const EpShape& shape, const Placement& placement, int rank)
    : world_(std::move(world)) {
  const EpLayout layout(shape, placement, rank);
  Provider& provider = world_->provider();
  region_ = provider.allocate(layout.bytes);
  const auto piece = [&](const EpPiece& p) { return HighWater(provider, region_, p.offset, p.bytes); };
  for (uint64_t turn = 0; turn < record_depth; ++turn) {
    input[turn].memory = piece(layout.input[turn]);
    staging[turn].memory = piece(layout.staging[turn]);
    route[turn].memory = piece(layout.route[turn]);
    bases[turn].memory = piece(layout.bases[turn]);
  }
  for (size_t i = 0; i < layout.x.size(); ++i) {
    results.push_back(std::make_unique<ResultSlot>());
    results.back()->x = piece(layout.x[i]);
    results.back()->out = piece(layout.out[i]);
    if (!layout.quantised.empty()) results.back()->quantised = piece(layout.quantised[i]);
  }
  const std::lock_guard lock(living().mutex);
  living().all.insert(this);
}

bool EpMemory::any_result_overlaps(const void* memory, uint64_t bytes) {
  const std::lock_guard lock(living().mutex);
  for (const EpMemory* one : living().all)
    for (const auto& slot : one->results)
      if (slot->x.overlaps(memory, bytes) || slot->out.overlaps(memory, bytes) ||
          slot->quantised.overlaps(memory, bytes))
        return true;
  return false;
}

EpMemory::~EpMemory() {
  {
    const std::lock_guard lock(living().mutex);
    living().all.erase(this);
  }
  // The memory of a forked child is its parent's: freeing it here would empty the parent's arrays.
  if (!still_pulled && !world_->forked()) world_->provider().free(region_);
}

}  // namespace xccl
