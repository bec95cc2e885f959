// How what a call asks of the memory grows with the number of ranks: exactly as docs/performance.md says. Counted on the
// staged path, where everything goes through the provider.
#include <random>

#include "check.hpp"
#include "collective/all_gather.hpp"
#include "collective/all_to_all.hpp"
#include "collective/barrier.hpp"
#include "memory/providers.hpp"
#include "moe/expert_parallel.hpp"

using namespace xccl;

namespace {

struct Counts {
  uint64_t puts = 0, put_bytes = 0, gets = 0, got_bytes = 0, signals = 0;
  bool operator==(const Counts&) const = default;
};

// Passes everything on, and counts what one rank puts, gets and signals.
class Counting : public Provider {
 public:
  explicit Counting(std::unique_ptr<Provider> inner) : inner_(std::move(inner)) {}
  Counts counts;

  const char* name() const override { return inner_->name(); }
  Region allocate(uint64_t bytes) override { return inner_->allocate(bytes); }
  void commit(const Region& region, uint64_t offset, uint64_t bytes) override {
    inner_->commit(region, offset, bytes);
  }
  void decommit(const Region& region, uint64_t offset, uint64_t bytes) override {
    inner_->decommit(region, offset, bytes);
  }
  void free(const Region& region) override { inner_->free(region); }
  uint64_t committed_bytes() const override { return inner_->committed_bytes(); }
  Parcel invite() override { return inner_->invite(); }
  void accept(int rank, Parcel parcel) override { inner_->accept(rank, std::move(parcel)); }
  RemoteRegion attach(int rank, const RegionKey& key) override { return inner_->attach(rank, key); }
  void detach(RemoteRegion& region) override { inner_->detach(region); }
  void put(const RemoteRegion& region, const Transfer* list, size_t count) override {
    for (size_t i = 0; i < count; ++i) ++counts.puts, counts.put_bytes += list[i].bytes;
    inner_->put(region, list, count);
  }
  void get(const RemoteRegion& region, const Transfer* list, size_t count) override {
    for (size_t i = 0; i < count; ++i) ++counts.gets, counts.got_bytes += list[i].bytes;
    inner_->get(region, list, count);
  }
  void fence(int rank) override { inner_->fence(rank); }
  void quiet() override { inner_->quiet(); }
  void signal(const RemoteRegion& region, uint64_t offset, uint64_t value) override {
    ++counts.signals;
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
  std::unique_ptr<Provider> inner_;
};

// What `call` asks for on this rank.
template <class Call>
Counts counted(Communicator& comm, Call call) {
  auto& provider = dynamic_cast<Counting&>(comm.world().provider());
  provider.counts = {};
  call();
  return provider.counts;
}

template <class Body>
void on_counting_ranks(int size, Body body) {
  provider_wrapper = [](std::unique_ptr<Provider> inner) -> std::unique_ptr<Provider> {
    return std::make_unique<Counting>(std::move(inner));
  };
  test::on_ranks(size, test::local_config(false), body);
  provider_wrapper = nullptr;
}

constexpr uint64_t record = sizeof(Payload);

// Returns the bytes that the last dispatch and the last combine pulled.
std::pair<uint64_t, uint64_t> count_moe(Communicator& comm, const std::shared_ptr<Communicator>& shared,
                                        const EpShape& shape) {
  const auto others = static_cast<uint64_t>(comm.size()) - 1;
  ExpertParallel ep(shared, shape);
  // A row is pulled as its elements and, if it is quantised, its scales.
  const auto moved = [](const RowFormat& format) { return format.row_bytes() + format.scale_bytes(); };
  const auto parts = [](const RowFormat& format) { return format.quantised() ? 2u : 1u; };
  const RowFormat out = shape.dispatch_format(), back = shape.combine_format();
  std::pair<uint64_t, uint64_t> pulled;
  std::mt19937 random(static_cast<unsigned>(comm.rank()));
  std::vector<int64_t> experts(static_cast<size_t>(shape.max_tokens * shape.topk));
  const std::vector<float> weights(experts.size(), 1),
      x(static_cast<size_t>(shape.max_tokens * shape.hidden), 1);
  std::vector<float> y(x.size()), results;
  for (int call = 0; call < 3; ++call) {
    for (auto& expert : experts) expert = static_cast<int64_t>(random() % 256);
    std::shared_ptr<Dispatched> d;
    const Counts dispatch = counted(comm, [&] {
      d = ep.dispatch(x.data(), {experts.data(), true, weights.data(), shape.max_tokens}, nullptr, -1);
    });
    uint64_t from_others = 0;
    for (const int32_t source : d->routing->src_rank) from_others += source != comm.rank();
    // A record to each other rank; from every rank its list, from the others their rows.
    CHECK(dispatch == (Counts{others, others * record, others + 1 + parts(out) * from_others,
                              d->rows() * sizeof(RoutedRow) + from_others * moved(out), others}));

    results.resize(d->rows() * static_cast<uint64_t>(shape.hidden), 1);
    const Counts combine = counted(comm, [&] { ep.combine(results.data(), *d, nullptr, y.data(), -1); });
    uint64_t hosts = 0, bases = 0;
    for (int member = 0; member < comm.size(); ++member) {
      if (d->routing->rows_to(ep.placement(), member) == 0) continue;
      ++hosts;
      bases += 4 * static_cast<uint64_t>(ep.placement().count(member));
    }
    // A record to each other rank; the bases of those who have rows of this one, and the rows.
    CHECK(combine == (Counts{others, others * record, hosts + parts(back) * experts.size(),
                             bases + experts.size() * moved(back), others}));
    pulled = {dispatch.got_bytes, combine.got_bytes};
  }
  ep.close();
  return pulled;
}

EpShape small(Quant dispatch_quant, Quant combine_quant) {
  EpShape shape{256, 16, 32, 8};
  shape.dispatch_quant = dispatch_quant;
  shape.combine_quant = combine_quant;
  return shape;
}

}  // namespace

TEST("dispatch and combine: a record to each rank, and what is pulled") {
  for (const int size : {2, 8, 32, 64})
    on_counting_ranks(size, [](Communicator& comm, const auto& shared) {
      count_moe(comm, shared, small(Quant::none, Quant::none));
    });
}

TEST("quantised rows are pulled with their scales, and nothing else changes") {
  for (const int size : {2, 8})
    on_counting_ranks(size, [](Communicator& comm, const auto& shared) {
      count_moe(comm, shared, small(Quant::int8, Quant::fp8_e4m3));
      count_moe(comm, shared, small(Quant::fp8_e4m3, Quant::int8));
    });
}

TEST("rows of 7168 bfloat16 quantised: at most 0.52 of the bytes, lists and all, there and back") {
  on_counting_ranks(2, [](Communicator& comm, const auto& shared) {
    EpShape shape{256, 7168, 16, 8, RowType::bfloat16};
    const auto plain = count_moe(comm, shared, shape);
    for (const Quant quant : {Quant::int8, Quant::fp8_e4m3}) {
      shape.dispatch_quant = shape.combine_quant = quant;
      const auto quantised = count_moe(comm, shared, shape);
      CHECK(100 * quantised.first <= 52 * plain.first && 100 * quantised.second <= 52 * plain.second);
    }
  });
}

TEST("a barrier signals as many ranks as the size has binary digits") {
  for (const int size : {2, 3, 8, 33})
    on_counting_ranks(size, [](Communicator& comm, const auto&) {
      uint64_t rounds = 0;
      while ((1 << rounds) < comm.size()) ++rounds;
      CHECK(counted(comm, [&] { barrier(comm); }) == (Counts{0, 0, 0, 0, rounds}));
    });
}

TEST(
    "all_gather and all_to_all: a record to each rank, and a pull from each where it does not ride in that") {
  for (const int size : {2, 8, 33})
    on_counting_ranks(size, [](Communicator& comm, const auto&) {
      const auto others = static_cast<uint64_t>(comm.size()) - 1;
      for (const uint64_t bytes : {24, 1000}) {
        const uint64_t pulled = bytes > 24 ? others : 0;
        std::string mine((others + 1) * bytes, 'x'), all(mine.size(), ' ');
        const Counts expected{others, others * record, pulled, pulled * bytes, others};
        CHECK(counted(comm, [&] { all_gather(comm, mine.data(), all.data(), bytes); }) == expected);
        CHECK(counted(comm, [&] { all_to_all(comm, mine.data(), all.data(), bytes); }) == expected);
      }
    });
}

TEST_MAIN()
