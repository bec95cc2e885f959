// The provider contract: everything XCCL asks of a global shared memory. One file implements it per kind
// of memory (local.cpp, posix_shm.cpp; CANN and UCX are to come) and providers.cpp lists them.
// Called by every layer above. docs/adding-a-provider.md explains it; the conformance suite
// (tests/native/provider_conformance.cpp) is run against every provider.
//
// A rank owns regions: ranges of address space that take memory only where they are committed. What crosses
// between ranks is a RegionKey (bytes) and offsets, never an address. A peer attaches a region by its key and
// then either uses `direct`, an address, or, where that is null, put, get and signal. Everything XCCL does is
// correct with `direct` null; that staged path is the reference for the fast one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/config.hpp"
#include "base/parcel.hpp"

namespace xccl {

// Names a region to other ranks. The meaning of the words belongs to the provider.
struct RegionKey {
  uint64_t words[2] = {0, 0};
};

// Memory that this rank owns.
struct Region {
  RegionKey key;
  uint64_t bytes = 0;
  std::byte* base = nullptr;  // host address, or null where the host cannot address it
};

// Memory of a peer (or of this rank itself), as this rank reaches it.
struct RemoteRegion {
  int rank = -1;
  uint64_t bytes = 0;
  std::byte* direct = nullptr;      // host address, or null: then put, get and signal are the only way
  std::byte* address = nullptr;     // for the provider alone
  std::shared_ptr<void> keepalive;  // keeps the mapping while this exists
};

struct Transfer {
  void* local;  // source of a put, destination of a get
  uint64_t remote_offset;
  uint64_t bytes;
};

class Provider {
 public:
  virtual ~Provider() = default;
  virtual const char* name() const = 0;

  // --- Memory of this rank ---------------------------------------------------------------------------
  // Reserves `bytes` of address space. Costs no memory yet. OutOfMemory when the space is used up.
  virtual Region allocate(uint64_t bytes) = 0;
  // Takes memory for [offset, offset + bytes), zeroed where it was not committed before. OutOfMemory, naming the
  // limit, rather than a later SIGBUS or kill.
  virtual void commit(const Region& region, uint64_t offset, uint64_t bytes) = 0;
  // Gives the memory of whole pages inside the range back; they read as zero when committed again.
  virtual void decommit(const Region& region, uint64_t offset, uint64_t bytes) = 0;
  virtual void free(const Region& region) = 0;
  // Memory that this rank's regions take now.
  virtual uint64_t committed_bytes() const = 0;

  // --- Meeting ---------------------------------------------------------------------------------------
  // What the other ranks need in order to reach this one; and the same from each of them, itself included.
  virtual Parcel invite() = 0;
  virtual void accept(int rank, Parcel parcel) = 0;

  // --- Memory of peers -------------------------------------------------------------------------------
  // InvalidArgument when the key does not lie in memory of that rank.
  virtual RemoteRegion attach(int rank, const RegionKey& key) = 0;
  virtual void detach(RemoteRegion& region) = 0;
  // Not complete on return: local memory may be used again after quiet(), and a get has arrived only then.
  virtual void put(const RemoteRegion& region, const Transfer* list, size_t count) = 0;
  virtual void get(const RemoteRegion& region, const Transfer* list, size_t count) = 0;
  // Earlier puts to `rank` become visible there before later puts and signals do.
  virtual void fence(int rank) = 0;
  // Every put and get of this rank is complete.
  virtual void quiet() = 0;
  // Stores an aligned 64-bit word there, visible after all earlier puts to that rank; and reads one.
  virtual void signal(const RemoteRegion& region, uint64_t offset, uint64_t value) = 0;
  virtual uint64_t fetch(const RemoteRegion& region, uint64_t offset) = 0;
  // Wakes the peer if it sleeps at the doorbell at `offset` for `caller` or for anybody (doorbell.hpp).
  virtual void notify(const RemoteRegion& region, uint64_t offset, int caller) = 0;
  // Lets transfers proceed that need this rank's help. Called in every wait.
  virtual void progress() = 0;
};

// What one rank of a job is made from.
struct JobSpec {
  std::string job;
  int rank = 0;
  int size = 1;
  // The name is a launcher's: every time that the program joins, it gets another number (group/world.cpp).
  bool numbered = false;
};

// One line of the table of providers.
struct ProviderEntry {
  const char* name;
  const char* what;          // one line for people
  std::string (*why_not)();  // "" when it can be used here
  std::unique_ptr<Provider> (*make)(const JobSpec&, const Config&);
};

}  // namespace xccl
