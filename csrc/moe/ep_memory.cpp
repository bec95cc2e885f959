#include "moe/ep_memory.hpp"

namespace xccl {

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
  }
}

EpMemory::~EpMemory() {
  // The memory of a forked child is its parent's: freeing it here would empty the parent's arrays.
  if (!still_pulled && !world_->forked()) world_->provider().free(region_);
}

}  // namespace xccl
