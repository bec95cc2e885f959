// What providers whose memory the host can address have in common: put, get and signal are copies and stores.
// Base class of local.cpp and posix_shm.cpp.
//
// In strict mode (config.direct off) it shows nobody an address and it postpones every put and get for as long
// as the contract allows, as a network would. So a protocol that forgets a fence or a quiet, or reuses a
// buffer too early, fails its tests here rather than on hardware we do not have.
#pragma once

#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/error.hpp"
#include "memory/doorbell.hpp"
#include "memory/provider.hpp"

namespace xccl {

class HostMemory : public Provider {
 public:
  explicit HostMemory(bool direct) : direct_(direct) {}

  void put(const RemoteRegion& region, const Transfer* list, size_t count) override {
    queue(region, list, count, true);
  }
  void get(const RemoteRegion& region, const Transfer* list, size_t count) override {
    queue(region, list, count, false);
  }
  void fence(int) override { flush(); }
  void quiet() override { flush(); }

  void signal(const RemoteRegion& region, uint64_t offset, uint64_t value) override {
    flush();
    // seq_cst: publishes the puts before it (release), and is step C of doorbell.hpp.
    word(region, offset).store(value, std::memory_order_seq_cst);
  }

  uint64_t fetch(const RemoteRegion& region, uint64_t offset) override {
    // seq_cst: pairs with the owner's release store, and is step B of doorbell.hpp where a waiter uses it.
    return word(region, offset).load(std::memory_order_seq_cst);
  }

  void notify(const RemoteRegion& region, uint64_t offset, int caller) override {
    auto* doorbell = reinterpret_cast<Doorbell*>(checked(region, offset, sizeof(Doorbell)));
    if (caller < 0)
      doorbell->ring_always();
    else
      doorbell->ring(caller);
  }

  void progress() override {}

 protected:
  std::byte* shown(std::byte* address) const { return direct_ ? address : nullptr; }

 private:
  struct Copy {
    void* to;
    const void* from;
    uint64_t bytes;
    std::shared_ptr<void> keepalive;
  };

  // Communicators of one job may be used by several threads at once, and share what is queued.
  struct Lock {
    explicit Lock(std::mutex* mutex) : mutex(mutex) {
      if (mutex) mutex->lock();
    }
    ~Lock() {
      if (mutex) mutex->unlock();
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    std::mutex* mutex;
  };

  static std::byte* checked(const RemoteRegion& region, uint64_t offset, uint64_t bytes) {
    if (offset > region.bytes || bytes > region.bytes - offset)
      fail(Status::Failure, "a transfer of ", byte_count(bytes), " at offset ", offset,
           " leaves the region of ", byte_count(region.bytes), " of rank ", region.rank);
    return region.address + offset;
  }

  static std::atomic_ref<uint64_t> word(const RemoteRegion& region, uint64_t offset) {
    return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(checked(region, offset, 8)));
  }

  void queue(const RemoteRegion& region, const Transfer* list, size_t count, bool is_put) {
    const Lock lock(direct_ ? nullptr : &mutex_);
    for (size_t i = 0; i < count; ++i) {
      std::byte* remote = checked(region, list[i].remote_offset, list[i].bytes);
      if (direct_ && list[i].bytes)
        is_put ? std::memcpy(remote, list[i].local, list[i].bytes)
               : std::memcpy(list[i].local, remote, list[i].bytes);
      else if (list[i].bytes)
        is_put ? queued_.push_back({remote, list[i].local, list[i].bytes, region.keepalive})
               : queued_.push_back({list[i].local, remote, list[i].bytes, region.keepalive});
    }
  }

  void flush() {
    if (direct_) return;
    const Lock lock(&mutex_);
    for (const Copy& copy : queued_) std::memcpy(copy.to, copy.from, copy.bytes);
    queued_.clear();
  }

  bool direct_;
  std::mutex mutex_;          // of what is queued
  std::vector<Copy> queued_;  // in strict mode: transfers not yet performed
};

}  // namespace xccl
