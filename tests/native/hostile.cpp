// A rank that lies: it writes anything into all that it may write. The others get errors with a status, or results that
// they cannot know to be wrong; nobody crashes, reads out of bounds (make asan) or waits long past a deadline.
//
// The liar is a rank like the others, over a provider that changes what it posts, and beside it a thread that scribbles:
// over records already posted, over its own segment and over what others pull from it.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "base/test_point.hpp"
#include "check.hpp"
#include "collective/all_gather.hpp"
#include "collective/all_reduce.hpp"
#include "collective/all_to_all.hpp"
#include "collective/barrier.hpp"
#include "collective/broadcast.hpp"
#include "collective/split.hpp"
#include "group/shrink.hpp"
#include "memory/providers.hpp"
#include "moe/expert_parallel.hpp"
#include "p2p/point_to_point.hpp"

using namespace xccl;

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN
#endif

// Lengths that a liar names are asked of the allocator, which must answer as it does without sanitizers.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }

namespace {

constexpr double deadline_s = 0.25;
constexpr double long_past_s = 20;  // several deadlines follow each other in one call, on a busy machine

// What the liar does to numbers that others will read.
class Lies {
 public:
  explicit Lies(unsigned seed) : random_(seed) {}

  uint64_t draw(uint64_t below) { return random_() % below; }

  uint64_t instead_of(uint64_t word) {
    switch (draw(8)) {
      case 0:
        return random_();
      case 1:
        return word ^ (uint64_t{1} << draw(64));
      case 2:
        return word + draw(4);
      case 3:
        return word - draw(4);
      case 4:
        return UINT64_MAX - draw(130);
      case 5:
        return draw(300);
      case 6:
        return uint64_t{1} << draw(64);
      default:
        return (word & ~uint64_t{0xff}) | draw(16);
    }
  }

 private:
  std::mt19937_64 random_;
};

// Stands between the liar and the provider.
class Lying : public Provider {
 public:
  Lying(std::unique_ptr<Provider> inner, unsigned seed)
      : inner_(std::move(inner)), lies_(seed), one_in_(how_often(seed)) {
    if (seed / 3 % 4 != 2) scribbler_ = std::thread([this] { scribble(); });
  }
  ~Lying() override {
    stop_.store(true);
    if (scribbler_.joinable()) scribbler_.join();
  }

  const char* name() const override { return inner_->name(); }
  Region allocate(uint64_t bytes) override { return inner_->allocate(bytes); }
  void commit(const Region& region, uint64_t offset, uint64_t bytes) override {
    inner_->commit(region, offset, bytes);
    const std::lock_guard lock(mutex_);
    if (bytes >= 8) own_[region.base].push_back({region.base + offset, bytes / 8});
  }
  void decommit(const Region& region, uint64_t offset, uint64_t bytes) override {
    inner_->decommit(region, offset, bytes);
  }
  void free(const Region& region) override {
    const std::lock_guard lock(mutex_);
    own_.erase(region.base);
    inner_->free(region);
  }
  uint64_t committed_bytes() const override { return inner_->committed_bytes(); }
  Parcel invite() override { return inner_->invite(); }
  void accept(int rank, Parcel parcel) override { inner_->accept(rank, std::move(parcel)); }
  RemoteRegion attach(int rank, const RegionKey& key) override { return inner_->attach(rank, key); }
  void detach(RemoteRegion& region) override { inner_->detach(region); }
  void put(const RemoteRegion& region, const Transfer* list, size_t count) override {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < count; ++i) {
      remember(region, list[i].remote_offset, list[i].bytes);
      std::vector<uint64_t>& said = said_.emplace_back(list[i].bytes / 8);
      std::memcpy(said.data(), list[i].local, 8 * said.size());
      for (uint64_t& word : said)
        if (lies_.draw(one_in_) == 0) word = lies_.instead_of(word);
      const Transfer transfer{said.data(), list[i].remote_offset, 8 * said.size()};
      inner_->put(region, &transfer, 1);
    }
  }
  void get(const RemoteRegion& region, const Transfer* list, size_t count) override {
    inner_->get(region, list, count);
  }
  void fence(int rank) override { inner_->fence(rank); }
  void quiet() override {
    inner_->quiet();
    const std::lock_guard lock(mutex_);
    said_.clear();
  }
  void signal(const RemoteRegion& region, uint64_t offset, uint64_t value) override {
    {
      const std::lock_guard lock(mutex_);
      remember(region, offset, 8);
      if (lies_.draw(one_in_) == 0) value = lies_.instead_of(value);
    }
    inner_->signal(region, offset, value);
  }
  uint64_t fetch(const RemoteRegion& region, uint64_t offset) override {
    return inner_->fetch(region, offset);
  }
  void notify(const RemoteRegion& region, uint64_t offset, int caller) override {
    inner_->notify(region, offset, caller);
  }
  void progress() override { inner_->progress(); }

 private:
  static uint64_t how_often(unsigned seed) {
    return std::vector<uint64_t>{UINT64_MAX, 4, 64, 16}[seed / 3 % 4];
  }

  struct Words {
    std::byte* first;
    uint64_t count;
  };

  void remember(const RemoteRegion& region, uint64_t offset, uint64_t bytes) {
    if (said_to_.size() < 4096) said_to_.push_back({region, offset, bytes / 8});
  }

  void scribble() {
    while (!stop_.load()) {
      {
        const std::lock_guard lock(mutex_);
        for (int i = 0; i < 8 && !said_to_.empty(); ++i) {
          if (lies_.draw(2)) {
            const auto& [region, offset, count] = said_to_[lies_.draw(said_to_.size())];
            lie_at(region.address + offset + 8 * lies_.draw(count));
          } else if (!own_.empty()) {
            auto region = own_.begin();
            std::advance(region, static_cast<ptrdiff_t>(lies_.draw(own_.size())));
            const Words& words = region->second[lies_.draw(region->second.size())];
            lie_at(words.first + 8 * lies_.draw(std::min<uint64_t>(words.count, 4096)));
          }
        }
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }

  void lie_at(std::byte* place) {
    const std::atomic_ref<uint64_t> word(*reinterpret_cast<uint64_t*>(place));
    word.store(lies_.instead_of(word.load(std::memory_order_relaxed)), std::memory_order_relaxed);
  }

  std::unique_ptr<Provider> inner_;
  std::mutex mutex_;  // of all that follows
  Lies lies_;
  const uint64_t one_in_;                   // so many words is a lie
  std::deque<std::vector<uint64_t>> said_;  // what postponed puts read from
  struct Place {
    RemoteRegion region;
    uint64_t offset, count;
  };
  std::vector<Place> said_to_;
  std::map<std::byte*, std::vector<Words>> own_;
  std::atomic<bool> stop_{false};
  std::thread scribbler_;
};

thread_local bool is_liar = false;
std::atomic<unsigned> lie_seed{0};

class Rank {
 public:
  Rank(std::shared_ptr<Communicator> comm, unsigned seed)
      : comm_(std::move(comm)), p2p_(comm_), plan_(seed) {}

  // Random calls, the same on all ranks, until one fails; then what a user does after a failure.
  void run() {
    bool well = true;
    for (int step = 0; step < 40 && well; ++step)
      well = in_time([&] { call(static_cast<int>(plan_() % 12)); });
    std::shared_ptr<Communicator> rest;
    in_time([&] { rest = shrink(comm_); });
    if (rest) in_time([&] { barrier(*rest); });
    if (rest) in_time([&] { rest->close(); });
    if (ep_) in_time([&] { ep_->close(); });
    in_time([&] { p2p_.close(); });
    in_time([&] { comm_->close(); });
  }

 private:
  // True when the call has ended well; an error must have a status, and come in time.
  template <class Call>
  bool in_time(Call call) {
    const uint64_t began = now_ns();
    bool well = true;
    try {
      call();
    } catch (const Error&) {
      well = false;
    }
    CHECK(static_cast<double>(now_ns() - began) * 1e-9 < long_past_s);
    return well;
  }

  void call(int which) {
    const auto size = static_cast<size_t>(comm_->size());
    const uint64_t bytes = std::vector<uint64_t>{8, 24, 1000, 9000, 300'000}[plan_() % 5];
    std::vector<std::byte> mine(bytes * size), all(bytes * size);
    std::vector<uint64_t> counts(size);
    switch (which) {
      case 0:
        return barrier(*comm_);
      case 1:
        return all_gather(*comm_, mine.data(), all.data(), bytes);
      case 2:
        return all_to_all(*comm_, mine.data(), all.data(), bytes);
      case 3:
        return all_gather_v(*comm_, mine.data(), bytes / 8, 8, room_in(all.data(), all.size() / 8),
                            counts.data());
      case 4: {
        const std::vector<uint64_t> give(size, bytes / 8);
        return all_to_all_v(*comm_, mine.data(), give.data(), 8, room_in(all.data(), all.size() / 8),
                            counts.data());
      }
      case 5:
        return broadcast(*comm_, mine.data(), bytes, static_cast<int>(plan_() % size));
      case 6:
        return all_reduce(*comm_, mine.data(), all.data(), bytes / 4, ElementType::float32, ReduceOp::sum);
      case 7:
        return divide();
      case 8:
        return borrow(mine.data(), bytes);
      case 9:
        return exchange(bytes);
      default:
        return moe();
    }
  }

  int before() const { return (comm_->rank() + comm_->size() - 1) % comm_->size(); }
  int behind() const { return (comm_->rank() + 1) % comm_->size(); }

  void divide() {
    const auto part = split(comm_, comm_->rank() % 2, 0);
    barrier(*part);
    part->close();
  }

  // The requests may outlive the call.
  void exchange(uint64_t bytes) {
    const auto mine = std::make_shared<std::vector<std::byte>>(bytes),
               all = std::make_shared<std::vector<std::byte>>(bytes);
    const auto sent = p2p_.isend(mine->data(), bytes, behind(), 1, mine);
    const auto received = p2p_.irecv(all->data(), bytes, plan_() % 2 ? before() : any_source, 1, all);
    p2p_.wait(*received);
    p2p_.wait(*sent);
  }

  void borrow(const std::byte* data, uint64_t bytes) {
    if (comm_->rank() % 2 == 0 && behind() != 0) return p2p_.send(data, bytes, behind(), 2);
    if (comm_->rank() % 2 == 0) return;
    const auto view = p2p_.recv_view(before(), 2, -1, ViewSize{bytes, 1});
    unsigned sum = 0;
    for (uint64_t i = 0; i < view->info.bytes; ++i) sum += static_cast<unsigned>(view->data[i]);
    seen_ += sum;
    view->released.store(true, std::memory_order_release);
  }

  void moe() {
    const EpShape shape{7, 40, 16, 3};
    if (!ep_) ep_ = std::make_unique<ExpertParallel>(comm_, shape);
    const int64_t tokens = static_cast<int64_t>(plan_() % 17);
    std::vector<int64_t> experts(static_cast<size_t>(tokens * shape.topk));
    for (auto& expert : experts) expert = static_cast<int64_t>(plan_() % 7);
    const std::vector<float> weights(experts.size(), 1), x(static_cast<size_t>(tokens * shape.hidden), 1);
    std::vector<float> y(x.size() + 1);
    const TopK topk{experts.data(), true, weights.data(), tokens};
    const auto d = ep_->dispatch(x.data(), topk, nullptr, -1);
    ep_->combine(d->lease->slot().x.base(), *d, nullptr, y.data(), -1);
    if (plan_() % 2) ep_->dispatch(x.data(), topk, d->routing, -1);
  }

  std::shared_ptr<Communicator> comm_;
  PointToPoint p2p_;
  std::unique_ptr<ExpertParallel> ep_;
  std::mt19937 plan_;
  unsigned seen_ = 0;
};

[[maybe_unused]] void play(unsigned seed) {
  constexpr int size = 3;
  const int liar = static_cast<int>(seed % size);
  lie_seed = seed;
  provider_wrapper = [](std::unique_ptr<Provider> inner) -> std::unique_ptr<Provider> {
    if (!is_liar) return inner;
    return std::make_unique<Lying>(std::move(inner), lie_seed.load());
  };
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.emplace_back([&, rank] {
      is_liar = rank == liar;
      // What the liar posts goes through its provider; the others read its memory by address, or not.
      Config config = test::local_config(!is_liar && seed % 2);
      config.timeout = deadline_s;
      config.startup_timeout = 5;
      try {
        auto comm = Communicator::init({"hostile-" + std::to_string(seed), rank, size}, config,
                                       PointToPoint::annex_bytes);
        Rank(comm, seed).run();
      } catch (const Error&) {  // a header or card that was scribbled over at once
      }
    });
  for (auto& rank : ranks) rank.join();
  provider_wrapper = nullptr;
}

}  // namespace

#if defined(UNDER_TSAN)
TEST("a rank that lies: not under ThreadSanitizer, which would report the lies as races") {}
#else
TEST("a rank that writes anything wherever it may makes errors, no crashes and no hangs") {
  const char* chosen = std::getenv("HOSTILE_SEED");
  const unsigned first = chosen ? static_cast<unsigned>(std::strtoul(chosen, nullptr, 10)) : 1;
  const unsigned rounds = chosen ? 1 : 40;
  for (unsigned seed = first; seed < first + rounds; ++seed) {
    std::printf("  HOSTILE_SEED=%u\n", seed);
    std::fflush(stdout);
    play(seed);
  }
}

// A member may agree by the time that its difference is to be described.
TEST("a record that is changed while its difference is looked for is an error") {
  static thread_local std::atomic<uint64_t>* other_size = nullptr;
  static constexpr uint64_t agreed = 8;
  test_point_hook = [](const char* name) {
    if (other_size && std::strcmp(name, "exchange.mismatch") == 0) other_size->store(agreed);
  };
  test::on_ranks(2, test::local_config(true), [](Communicator& comm, const auto&) {
    const CommunicatorLayout layout(2, 0);
    std::byte* board = comm.group().own + comm.annex(comm.rank()) - layout.annex + layout.board;
    const int other = 1 - comm.rank();
    auto* record = reinterpret_cast<Record*>(
        board + cache_line + (static_cast<uint64_t>(other) * record_depth + 1) * sizeof(Record));
    if (comm.rank() == 0)
      other_size = reinterpret_cast<std::atomic<uint64_t>*>(&record->payload[exchange_record::size]);
    std::vector<std::byte> mine(16), all(32);
    const Error error =
        CHECK_THROWS(all_gather(comm, mine.data(), all.data(), comm.rank() == 0 ? agreed : 16),
                     comm.rank() == 0 ? Status::Failure : Status::Mismatch);
    CHECK(comm.rank() == 1 || error.message.find("changed its record") != std::string::npos);
    other_size = nullptr;
  });
  test_point_hook = nullptr;
}
#endif

TEST_MAIN()
