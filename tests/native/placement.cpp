// Experts placed freely: what a Placement looks up and refuses; and placements that change between the calls of ranks that
// are threads, some of them slow, with every row and sum checked. Seen by ThreadSanitizer.
#include "moe/placement.hpp"

#include <chrono>
#include <random>

#include "base/test_point.hpp"
#include "check.hpp"
#include "moe/expert_parallel.hpp"

using namespace xccl;

namespace {

std::vector<int32_t> experts_of(const Placement& placement) {
  std::vector<int32_t> out;
  for (int position = 0; position < placement.positions(); ++position)
    out.push_back(placement.expert(position));
  return out;
}

const std::vector<int32_t> slots = {3, 0, 2, 2};
constexpr int ranks = 4, experts = 4, tokens = 6, hidden = 5, topk = 3;

// Every expert somewhere, in any order; what is left over is anything. The same on all ranks.
std::vector<int32_t> random_placement(std::mt19937& random) {
  std::vector<int32_t> held = {0, 1, 2, 3};
  while (held.size() < 7) held.push_back(static_cast<int32_t>(random() % (experts + 1)) - 1);
  std::shuffle(held.begin(), held.end(), random);
  return held;
}

float value(int rank, int call, int token, int i) {
  return static_cast<float>((rank * 64 + call % 64) * 1024 + token * 16 + i);
}

// One rank of a job whose placement changes every few calls. Expert e adds e to what it gets.
class Player {
 public:
  explicit Player(std::shared_ptr<Communicator> comm)
      : comm_(comm),
        ep_(comm, shape(), Placement(experts, slots, random_placement(alike_))),
        random_(static_cast<unsigned>(comm->rank())),
        expected_load_(experts) {}

  void play(int call) {
    if (alike_() % 3 == 0) ep_.set_placement(random_placement(alike_), -1);
    make_tokens(call);
    auto d = ep_.dispatch(x_.data(), {idx_.data(), true, weights_.data(), count_}, nullptr, -1);
    work(*d, call);
    // Sometimes the placement changes between a dispatch and its combine, which must not matter.
    if (alike_() % 4 == 0) ep_.set_placement(random_placement(alike_), -1);
    std::vector<float> y(x_.size(), -7);
    ep_.combine(d->lease->slot().x.base(), *d, nullptr, y.data(), -1);
    check_sums(y, call);
    CHECK(ep_.expert_load() == expected_load_);
  }

 private:
  static EpShape shape() {
    EpShape out{experts, hidden, tokens, topk, RowType::float32};
    out.shared_experts = {3};
    return out;
  }

  void make_tokens(int call) {
    count_ = static_cast<int>(random_() % (tokens + 1));
    x_.resize(static_cast<size_t>(count_ * hidden));
    for (int t = 0; t < count_; ++t)
      for (int i = 0; i < hidden; ++i)
        x_[static_cast<size_t>(t * hidden + i)] = value(comm_->rank(), call, t, i);
    idx_.resize(static_cast<size_t>(count_ * topk));
    weights_.assign(static_cast<size_t>(count_ * (topk + 1)), 1.0f);
    for (auto& expert : idx_) {
      expert = static_cast<int64_t>(random_() % (experts + 1)) - 1;
      if (expert >= 0) ++expected_load_[static_cast<size_t>(expert)];
    }
    expected_load_[3] += count_;
  }

  void work(const Dispatched& d, int call) {
    auto* row = reinterpret_cast<float*>(d.lease->slot().x.base());
    const Placement& placement = ep_.placement();
    const Routing& routing = *d.routing;
    CHECK(routing.counts.size() == static_cast<size_t>(placement.count(comm_->rank())));
    size_t number = 0;
    for (size_t slot = 0; slot < routing.counts.size(); ++slot) {
      const int expert = placement.expert(placement.first(comm_->rank()) + static_cast<int>(slot));
      CHECK(expert != Placement::nobody || routing.counts[slot] == 0);
      for (int64_t i = 0; i < routing.counts[slot]; ++i, ++number)
        for (int k = 0; k < hidden; ++k, ++row) {
          CHECK(*row == value(routing.src_rank[number], call, routing.src_token[number], k));
          *row += static_cast<float>(expert);
        }
    }
    CHECK(number == d.rows());
  }

  void check_sums(const std::vector<float>& y, int call) const {
    for (int t = 0; t < count_; ++t)
      for (int i = 0; i < hidden; ++i) {
        const float x = value(comm_->rank(), call, t, i);
        float sum = x + 3;  // the shared expert
        for (int k = 0; k < topk; ++k)
          if (const int64_t expert = idx_[static_cast<size_t>(t * topk + k)]; expert >= 0)
            sum += x + static_cast<float>(expert);
        CHECK(y[static_cast<size_t>(t * hidden + i)] == sum);
      }
  }

  std::shared_ptr<Communicator> comm_;
  std::mt19937 alike_{7};  // the same numbers on all ranks
  ExpertParallel ep_;
  std::mt19937 random_;
  int count_ = 0;
  std::vector<float> x_, weights_;
  std::vector<int64_t> idx_, expected_load_;
};

void play(bool direct) {
  test::on_ranks(ranks, test::local_config(direct), [](Communicator&, std::shared_ptr<Communicator> comm) {
    Player player(comm);
    for (int call = 0; call < 60; ++call) player.play(call);
  });
}

}  // namespace

TEST("the even spread is plain, blocks of experts, the first ranks one more") {
  const Placement even(7, 3);
  CHECK(even.plain() && even.positions() == 7 && even.experts() == 7 && even.ranks() == 3);
  CHECK(even.count(0) == 3 && even.count(1) == 2 && even.count(2) == 2);
  CHECK(even.first(1) == 3 && even.rank_of(2) == 0 && even.rank_of(3) == 1 && even.rank_of(6) == 2);
  for (int expert = 0; expert < 7; ++expert)
    CHECK(even.position(expert, 5) == expert && even.expert(expert) == expert && even.replicas(expert) == 1);
  CHECK(Placement(2, 5).count(1) == 1 && Placement(2, 5).count(4) == 0);
  CHECK(even.digest() == Placement(7, {3, 2, 2}, {0, 1, 2, 3, 4, 5, 6}).digest());
  CHECK(even.digest() != Placement(7, {3, 3, 1}, {0, 1, 2, 3, 4, 5, 6}).digest());
}

TEST("replicas take turns, and one on a given rank can be preferred") {
  const Placement placement(3, {2, 0, 3}, {1, 0, 0, -1, 2});
  CHECK(!placement.plain() && placement.positions() == 5 && placement.replicas(0) == 2);
  CHECK(placement.position(0, 0) == 1 && placement.position(0, 1) == 2 && placement.position(0, 2) == 1);
  CHECK(placement.position(1, 9) == 0 && placement.position(2, 9) == 4);
  CHECK(placement.position_near(2, 0, 0) == 2 && placement.position_near(0, 0, 1) == 1);
  CHECK(placement.position_near(1, 0, 1) == 2);
  const Placement other = placement.holding({-1, 0, 1, 2, -1});
  CHECK((experts_of(other) == std::vector<int32_t>{-1, 0, 1, 2, -1}) && other.count(2) == 3);
  CHECK(other.digest() != placement.digest());
}

TEST("placements that cannot be are refused, naming what is wrong") {
  const auto refused = [](const char* expected, const std::vector<int32_t>& counts,
                          std::vector<int32_t> held) {
    const Error error = CHECK_THROWS(Placement(2, counts, std::move(held)), Status::InvalidArgument);
    CHECK(std::string(error.what()).find(expected) != std::string::npos);
  };
  refused("rank 1 has expert 2 in slot 0", {1, 1}, {0, 2});
  refused("rank 0 has expert -2 in slot 1", {2, 1}, {0, -2, 1});
  refused("expert 1 is on no rank", {1, 1}, {0, 0});
  refused("rank 1 has -1 slots", {2, -1}, {0});
  refused("3 entries for 2 slots", {1, 1}, {0, 1, 1});
  refused("slots: expected", {1 << 30, 1 << 30}, {0, 1});
  CHECK_THROWS(Placement(2, 2).holding({0, 1, 1}), Status::InvalidArgument);
  CHECK_THROWS(Placement(2, 2).holding({0, 0}), Status::InvalidArgument);
}

TEST("rows and sums are right while the placement changes, direct and staged") {
  for (const bool direct : {true, false}) play(direct);
}

TEST("they stay right when ranks sleep between publishing and pulling") {
  test_point_hook = [](const char*) {
    thread_local std::mt19937 random(std::random_device{}());
    if (random() % 20 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
  };
  for (const bool direct : {true, false}) play(direct);
  test_point_hook = nullptr;
}

TEST_MAIN()
