#include "memory/local.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "memory/range_allocator.hpp"

namespace xccl {

std::shared_ptr<LocalSpace> LocalSpace::of_job(const std::string& job) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<LocalSpace>> jobs;
  const std::lock_guard lock(mutex);
  std::shared_ptr<LocalSpace> space = jobs[job].lock();
  if (!space) jobs[job] = space = std::make_shared<LocalSpace>();
  std::erase_if(jobs, [](const auto& entry) { return entry.second.expired(); });
  return space;
}

Local::Local(const JobSpec& spec, const Config& config)
    : HostMemory(config.direct),
      rank_(spec.rank),
      huge_pages_(config.huge_pages),
      space_(LocalSpace::of_job(spec.job)) {}

Region Local::allocate(uint64_t bytes) {
  auto mapping = std::make_shared<Mapping>(-1, std::max<uint64_t>(bytes, 1));
  const std::lock_guard lock(space_->mutex);
  const uint64_t id = space_->next_id++;
  space_->regions[id] = {rank_, mapping};
  return Region{RegionKey{{id, mapping->bytes()}}, mapping->bytes(), mapping->base()};
}

void Local::commit(const Region& region, uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return;
  uint64_t first = round_down(offset, page_granule), last = round_up(offset + bytes, page_granule);
  require_headroom(last - first);
  if (huge_pages_) madvise(region.base + first, last - first, MADV_HUGEPAGE);
  const std::lock_guard lock(space_->mutex);
  // Merge with what is committed already, so that the count stays true.
  auto& ranges = committed_[region.key.words[0]];
  auto range = ranges.upper_bound(last);
  while (range != ranges.begin() && std::prev(range)->second >= first) {
    --range;
    first = std::min(first, range->first);
    last = std::max(last, range->second);
    range = ranges.erase(range);
  }
  ranges[first] = last;
}

void Local::decommit(const Region& region, uint64_t offset, uint64_t bytes) {
  const uint64_t first = round_up(offset, page_granule), last = round_down(offset + bytes, page_granule);
  if (first >= last) return;
  madvise(region.base + first, last - first, MADV_DONTNEED);
  const std::lock_guard lock(space_->mutex);
  auto& ranges = committed_[region.key.words[0]];
  std::map<uint64_t, uint64_t> kept;
  for (const auto& [begin, end] : ranges) {
    if (begin < first) kept[begin] = std::min(end, first);
    if (end > last) kept[std::max(begin, last)] = end;
  }
  ranges = std::move(kept);
}

void Local::free(const Region& region) {
  const std::lock_guard lock(space_->mutex);
  space_->regions.erase(region.key.words[0]);
  committed_.erase(region.key.words[0]);
}

uint64_t Local::committed_bytes() const {
  const std::lock_guard lock(space_->mutex);
  uint64_t total = 0;
  for (const auto& [id, ranges] : committed_)
    for (const auto& [first, last] : ranges) total += last - first;
  return total;
}

RemoteRegion Local::attach(int rank, const RegionKey& key) {
  const std::lock_guard lock(space_->mutex);
  const auto entry = space_->regions.find(key.words[0]);
  if (entry == space_->regions.end() || entry->second.rank != rank ||
      entry->second.mapping->bytes() != key.words[1])
    fail(Status::InvalidArgument, "rank ", rank, " owns no such region");
  const auto& mapping = entry->second.mapping;
  return RemoteRegion{rank, mapping->bytes(), shown(mapping->base()), mapping->base(), mapping};
}

}  // namespace xccl
