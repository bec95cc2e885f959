// The provider contract (memory/provider.hpp), held against every provider that says it is available here, with direct
// pointers and in strict mode. A new provider is tested by standing in the table.
#include <cstring>
#include <thread>

#include "check.hpp"
#include "memory/control_layout.hpp"
#include "memory/mapping.hpp"
#include "memory/providers.hpp"

using namespace xccl;

namespace {

constexpr uint64_t region_bytes = 3 << 20;

// Two ranks of one job in this process, which have met.
struct Pair {
  std::unique_ptr<Provider> a, b;

  Pair(const char* provider, bool direct) {
    static int jobs = 0;
    Config config;
    config.provider = provider;
    config.direct = direct;
    config.address_space = uint64_t{32} << 30;  // ThreadSanitizer leaves less room than the default takes
    const std::string job = "conformance-" + std::to_string(++jobs);
    a = make_provider({job, 0, 2}, config);
    b = make_provider({job, 1, 2}, config);
    for (Provider* one : {a.get(), b.get()}) {
      one->accept(0, a->invite());
      one->accept(1, b->invite());
    }
  }
};

void for_each_provider(const std::function<void(Pair&, bool direct)>& body) {
  int tested = 0;
  for (const ProviderEntry& entry : providers()) {
    if (const std::string reason = entry.why_not(); !reason.empty()) {
      std::printf("  SKIPPED %s: %s\n", entry.name, reason.c_str());
      continue;
    }
    for (const bool direct : {true, false}) {
      Pair pair(entry.name, direct);
      body(pair, direct);
      ++tested;
    }
  }
  CHECK(tested >= 4);  // posix_shm and local must be available wherever the tests run
}

Region committed_region(Provider& provider) {
  const Region region = provider.allocate(region_bytes);
  provider.commit(region, 0, region_bytes);
  return region;
}

}  // namespace

TEST("a region is zeroed, as large as asked, and its owner can use it") {
  for_each_provider([](Pair& pair, bool) {
    const Region region = committed_region(*pair.a);
    CHECK(region.bytes >= region_bytes && region.base);
    for (uint64_t i = 0; i < region_bytes; i += 4096) CHECK(region.base[i] == std::byte{0});
    std::memset(region.base, 7, region_bytes);
  });
}

TEST("allocating reserves only; committing takes memory; decommitting and freeing give it back") {
  for_each_provider([](Pair& pair, bool) {
    const uint64_t before = pair.a->committed_bytes();
    const Region region = pair.a->allocate(region_bytes);
    CHECK(pair.a->committed_bytes() == before);
    pair.a->commit(region, 0, 100);
    CHECK(pair.a->committed_bytes() == before + page_granule);
    pair.a->commit(region, 0, 100);  // again: no change
    CHECK(pair.a->committed_bytes() == before + page_granule);
    pair.a->commit(region, 0, region_bytes);
    CHECK(pair.a->committed_bytes() == before + region_bytes);
    region.base[page_granule] = std::byte{9};
    pair.a->decommit(region, page_granule, page_granule);
    CHECK(pair.a->committed_bytes() == before + region_bytes - page_granule);
    pair.a->commit(region, page_granule, page_granule);
    CHECK(region.base[page_granule] == std::byte{0});
    pair.a->free(region);
    CHECK(pair.a->committed_bytes() == before);
  });
}

TEST("address space that was freed is used again") {
  for_each_provider([](Pair& pair, bool) {
    for (int i = 0; i < 1000; ++i) {
      const Region region = pair.a->allocate(uint64_t{1} << 33);
      pair.a->commit(region, 0, 1);
      pair.a->free(region);
    }
  });
}

TEST("a direct pointer is given or it is not, as configured, and shows the owner's memory") {
  for_each_provider([](Pair& pair, bool direct) {
    const Region region = committed_region(*pair.a);
    const RemoteRegion remote = pair.b->attach(0, region.key);
    CHECK(remote.rank == 0 && remote.bytes == region.bytes);
    CHECK((remote.direct != nullptr) == direct);
    if (!direct) return;
    region.base[12345] = std::byte{42};
    CHECK(remote.direct[12345] == std::byte{42});
  });
}

TEST("a put arrives before the signal that follows it") {
  for_each_provider([](Pair& pair, bool) {
    const Region region = committed_region(*pair.a);
    const RemoteRegion remote = pair.b->attach(0, region.key);
    auto* flag = reinterpret_cast<std::atomic<uint64_t>*>(region.base);
    for (uint64_t round = 1; round <= 200; ++round) {
      std::vector<uint64_t> message(1000, round);
      std::thread writer([&] {
        const Transfer parts[] = {{message.data(), 64, 4000}, {message.data() + 500, 64 + 4000, 4000}};
        pair.b->put(remote, parts, 2);
        pair.b->signal(remote, 0, round);
      });
      while (flag->load(std::memory_order_acquire) != round) std::this_thread::yield();
      for (int i = 0; i < 1000; ++i) CHECK(reinterpret_cast<uint64_t*>(region.base + 64)[i] == round);
      writer.join();
    }
  });
}

TEST("a get has arrived after quiet, and a put has too") {
  for_each_provider([](Pair& pair, bool) {
    const Region region = committed_region(*pair.a);
    const RemoteRegion remote = pair.b->attach(0, region.key);
    std::memset(region.base, 5, 8192);
    char in[3][100] = {};
    const Transfer gets[] = {{in[0], 0, 100}, {in[1], 4096, 100}, {in[2], 8000, 0}};
    pair.b->get(remote, gets, 3);
    pair.b->quiet();
    CHECK(in[0][99] == 5 && in[1][0] == 5 && in[2][0] == 0);
    char out[64];
    std::memset(out, 6, sizeof out);
    const Transfer put{out, 100, sizeof out};
    pair.b->put(remote, &put, 1);
    pair.b->quiet();
    CHECK(region.base[163] == std::byte{6} && region.base[164] == std::byte{5});
  });
}

TEST("words are signalled and fetched") {
  for_each_provider([](Pair& pair, bool) {
    const Region region = committed_region(*pair.a);
    const RemoteRegion remote = pair.b->attach(0, region.key);
    pair.b->signal(remote, 128, 77);
    CHECK(pair.b->fetch(remote, 128) == 77);
    CHECK(*reinterpret_cast<uint64_t*>(region.base + 128) == 77);
  });
}

TEST("what leaves a region, and a key that is not the rank's, is refused") {
  for_each_provider([](Pair& pair, bool) {
    const Region region = committed_region(*pair.a);
    const RemoteRegion remote = pair.b->attach(0, region.key);
    char byte = 0;
    for (const Transfer& transfer : {Transfer{&byte, region.bytes, 1}, Transfer{&byte, UINT64_MAX, 2},
                                     Transfer{&byte, 0, region.bytes + 1}})
      CHECK_THROWS(pair.b->put(remote, &transfer, 1), Status::Failure);
    CHECK_THROWS(pair.b->signal(remote, region.bytes, 1), Status::Failure);
    RegionKey wrong = region.key;
    wrong.words[0] += uint64_t{1} << 60;
    CHECK_THROWS(pair.b->attach(0, wrong), Status::InvalidArgument);
    wrong = region.key;
    wrong.words[1] += uint64_t{1} << 60;
    CHECK_THROWS(pair.b->attach(0, wrong), Status::InvalidArgument);
  });
}

TEST("strict mode postpones transfers until fence, quiet or signal") {
  for_each_provider([](Pair& pair, bool direct) {
    if (direct) return;
    const Region region = committed_region(*pair.a);
    const RemoteRegion remote = pair.b->attach(0, region.key);
    char byte = 1;
    const Transfer put{&byte, 0, 1};
    pair.b->put(remote, &put, 1);
    CHECK(region.base[0] == std::byte{0});
    byte = 2;  // too early: the put has not left yet, and this is what it will carry
    pair.b->fence(0);
    CHECK(region.base[0] == std::byte{2});
  });
}

TEST("notify wakes a sleeper for its caller and for anybody, and leaves others asleep") {
  for_each_provider([](Pair& pair, bool) {
    const Region region = committed_region(*pair.a);
    const RemoteRegion remote = pair.b->attach(0, region.key);
    auto* doorbell = new (region.base) Doorbell();
    auto* word = reinterpret_cast<std::atomic<uint32_t>*>(region.base);
    const auto rings = [&](int for_rank, int caller) {
      std::atomic<bool> woken{false};
      std::thread sleeper([&] {
        doorbell->sleep(for_rank, 60'000'000'000, [] { return false; });
        woken = true;
      });
      while (word->load() == Doorbell::awake) std::this_thread::yield();
      pair.b->notify(remote, 0, caller);
      // The ring takes the word back at once, whether or not the sleeper already runs.
      const bool rang = word->load() == Doorbell::awake;
      if (!rang) pair.b->notify(remote, 0, -1);
      sleeper.join();
      CHECK(woken);
      return rang;
    };
    CHECK(rings(1, 1));
    CHECK(rings(-1, 1));
    CHECK(rings(5, -1));
    CHECK(!rings(5, 1));
  });
}

TEST("more address space than there is raises OutOfMemory and names the setting") {
  Config config;
  config.provider = "posix_shm";
  config.address_space = uint64_t{64} << 20;
  auto provider = make_provider({"conformance-small", 0, 1}, config);
  const Error error = CHECK_THROWS(provider->allocate(uint64_t{65} << 20), Status::OutOfMemory);
  CHECK(std::strstr(error.what(), "XCCL_ADDRESS_SPACE"));
}

TEST_MAIN()
