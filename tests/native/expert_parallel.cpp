// Dispatch and combine between ranks that are threads, under load: every row carries who it is, so a row that is
// overwritten too early, or comes from the wrong place, is seen. Slow ranks, ranks without tokens, two objects at
// once. This is what ThreadSanitizer watches.
#include "moe/expert_parallel.hpp"

#include <chrono>
#include <cmath>
#include <random>

#include "base/test_point.hpp"
#include "check.hpp"
#include "collective/barrier.hpp"

using namespace xccl;

namespace {

// The value of element i of a token: exact in float32, different for every rank, call, token and object.
float value(int object, int rank, int call, int token, int i) {
  return static_cast<float>(((object * 8 + rank) * 64 + call % 64) * 1024 + token * 16 + i % 16);
}

struct Case {
  int ranks, experts, hidden, tokens, topk, calls;
  bool direct;
  int token_ranks = 0;
  bool progress_thread = false;

  EpShape ep_shape() const {
    EpShape shape{experts, hidden, tokens, topk, RowType::float32};
    shape.token_ranks = token_ranks;
    return shape;
  }
};

// One rank's view of one ExpertParallel, with its own random numbers: token counts differ by rank and call.
class Player {
 public:
  Player(std::shared_ptr<Communicator> comm, const Case& shape, int object)
      : case_(shape),
        object_(object),
        ep_(comm, shape.ep_shape()),
        random_(static_cast<unsigned>(comm->rank() * 100 + object)) {}

  void play(int call) {
    start(call);
    work(call);
    end(call);
  }

  // A call in three steps, between which other objects may be used. What others cannot tell is each rank's own affair:
  // whether dispatch and combine are made in one piece or in two.
  void start(int call) {
    make_tokens(call);
    halves_ = random_() % 2;
    const TopK topk{idx_.data(), true, weights_.data(), tokens_};
    const float* x = x_.data();
    if (random_() % 2) {
      auto* buffer = reinterpret_cast<float*>(ep_.input_buffer(tokens_, -1));
      std::copy(x_.begin(), x_.end(), buffer);
      x = buffer;
    }
    if (halves_)
      ep_.start_dispatch(x, topk, nullptr, -1);
    else
      d_ = ep_.dispatch(x, topk, nullptr, -1);
  }

  void work(int call) {
    if (halves_) {
      ask();
      d_ = ep_.finish_dispatch(-1);
    }
    const auto d = d_;
    check_rows(*d, call);
    // The experts' work: in place, into the library's buffer, or elsewhere.
    auto* rows = reinterpret_cast<float*>(d->lease->slot().x.base());
    const uint64_t elements = d->rows() * static_cast<uint64_t>(case_.hidden);
    float* result = rows;
    if (const auto way = random_() % 3; way == 1)
      result = reinterpret_cast<float*>(ep_.output_buffer(*d, -1));
    else if (way == 2)
      own_.resize(elements + 1), result = own_.data();
    for (uint64_t i = 0; i < elements; ++i) result[i] = rows[i] + 1;
    if (halves_)
      ep_.start_combine(result, *d, nullptr, y_.data(), -1);
    else
      ep_.combine(result, *d, nullptr, y_.data(), -1);
    if (random_() % 2) d_.reset();  // the rows stay until they have been combined
  }

  void end(int call) {
    if (halves_) {
      ask();
      ep_.finish_combine(-1);
    }
    d_.reset();
    std::fill(own_.begin(), own_.end(), -1.0f);  // private memory is the caller's again
    own_.clear();
    check_sums(call);
  }

  void close() { ep_.close(); }

 private:
  // Sometimes, and sometimes until it is there.
  void ask() {
    while (random_() % 4 > 0 && !ep_.can_finish()) std::this_thread::yield();
  }

  void make_tokens(int call) {
    const bool none = random_() % 3 == 0 || (case_.token_ranks > 0 && ep_.comm().rank() >= case_.token_ranks);
    tokens_ = none ? 0 : static_cast<int>(random_() % static_cast<unsigned>(case_.tokens + 1));
    x_.resize(static_cast<size_t>(tokens_ * case_.hidden));
    for (int t = 0; t < tokens_; ++t)
      for (int i = 0; i < case_.hidden; ++i)
        x_[static_cast<size_t>(t * case_.hidden + i)] = value(object_, ep_.comm().rank(), call, t, i);
    idx_.resize(static_cast<size_t>(tokens_ * case_.topk));
    weights_.assign(idx_.size(), 1.0f);
    for (auto& expert : idx_)
      expert = static_cast<int64_t>(random_() % static_cast<unsigned>(case_.experts + 1)) - 1;
    y_.assign(x_.size(), -7.0f);
  }

  void check_rows(const Dispatched& d, int call) {
    const auto* rows = reinterpret_cast<const float*>(d.lease->slot().x.base());
    int64_t total = 0;
    for (const int64_t count : d.routing->counts) total += count;
    CHECK(total == static_cast<int64_t>(d.rows()));
    for (uint64_t row = 0; row < d.rows(); ++row)
      for (int i = 0; i < case_.hidden; ++i)
        CHECK(rows[row * static_cast<uint64_t>(case_.hidden) + static_cast<uint64_t>(i)] ==
              value(object_, d.routing->src_rank[row], call, d.routing->src_token[row], i));
  }

  void check_sums(int call) {
    for (int t = 0; t < tokens_; ++t) {
      int experts = 0;
      for (int k = 0; k < case_.topk; ++k) experts += idx_[static_cast<size_t>(t * case_.topk + k)] >= 0;
      for (int i = 0; i < case_.hidden; ++i)
        CHECK(y_[static_cast<size_t>(t * case_.hidden + i)] ==
              static_cast<float>(experts) * (value(object_, ep_.comm().rank(), call, t, i) + 1));
    }
  }

  Case case_;
  int object_;
  ExpertParallel ep_;
  std::mt19937 random_;
  int tokens_ = 0;
  bool halves_ = false;  // in this call
  std::shared_ptr<Dispatched> d_;
  std::vector<float> x_, weights_, y_, own_;
  std::vector<int64_t> idx_;
};

void play(const Case& shape) {
  Config config = test::local_config(shape.direct);
  config.progress_thread = shape.progress_thread;
  test::on_ranks(shape.ranks, config, [&](Communicator&, std::shared_ptr<Communicator> comm) {
    Player first(comm, shape, 0);
    Player second(comm,
                  {shape.ranks, shape.experts + 1, shape.hidden + 3, shape.tokens, shape.topk, shape.calls,
                   shape.direct, shape.token_ranks},
                  1);
    for (int call = 0; call < shape.calls; ++call) {
      const bool both = call % 3 == 0;
      first.start(call);
      if (both) second.start(call);
      first.work(call);
      if (both) second.work(call);
      first.end(call);
      if (both) second.end(call);
      second.play(call);
    }
    first.close();
    second.close();
  });
}

}  // namespace

TEST("rows and sums are right for many shapes, direct and staged") {
  for (const bool direct : {true, false})
    for (const Case& shape : {Case{1, 4, 8, 5, 2, 50, direct}, Case{2, 6, 16, 9, 3, 100, direct},
                              Case{3, 2, 5, 7, 2, 60, direct}, Case{5, 7, 3, 4, 4, 40, direct}})
      play(shape);
}

TEST("rows stay right when ranks sleep between publishing and pulling") {
  test_point_hook = [](const char*) {
    thread_local std::mt19937 random(std::random_device{}());
    if (random() % 20 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
  };
  for (const bool direct : {true, false}) {
    play({4, 6, 16, 9, 3, 60, direct});
    for (const int token_ranks : {1, 2, 4}) play({5, 7, 16, 9, 3, 30, direct, token_ranks});
  }
  test_point_hook = nullptr;
}

TEST("rows stay right when threads of the ranks make the second halves, and these sleep as well") {
  test_point_hook = [](const char*) {
    thread_local std::mt19937 random(std::random_device{}());
    if (random() % 40 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
  };
  for (const bool direct : {true, false}) {
    play({3, 6, 16, 9, 3, 60, direct, 0, true});
    play({5, 7, 16, 9, 3, 30, direct, 2, true});
  }
  test_point_hook = nullptr;
}

TEST("one rank that is always slow does not see rows of later calls") {
  test_point_hook = [](const char* name) {
    // The first rank to pass here in a run is the slow one of that run.
    static std::atomic<std::thread::id> slow{};
    std::thread::id none{};
    slow.compare_exchange_strong(none, std::this_thread::get_id());
    if (slow.load() == std::this_thread::get_id() && std::string(name) == "ep.arrived")
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
  };
  play({3, 6, 16, 9, 3, 60, true});
  test_point_hook = nullptr;
}

namespace {

// Rows of one number each: of a quantised one the scale says which.
void play_quantised(const std::shared_ptr<Communicator>& comm, const EpShape& shape,
                    const Placement& placement, int calls) {
  ExpertParallel ep(comm, shape, placement);
  const auto tokens = static_cast<size_t>(shape.max_tokens), hidden = static_cast<size_t>(shape.hidden),
             topk = static_cast<size_t>(shape.topk), slots = static_cast<size_t>(shape.slots());
  const auto number = [](int rank, int call, size_t token) {
    return static_cast<float>((rank * 64 + call + 1) * 64) + static_cast<float>(token);
  };
  const auto close_to = [](float found, float expected) {
    return std::abs(found - expected) <= 0.001f * expected;
  };
  const float top = shape.dispatch_quant == Quant::int8 ? 127 : 448;
  const std::vector<float> weights(tokens * slots, 1 / static_cast<float>(slots));
  std::vector<float> x(tokens * hidden), y(x.size());
  std::mt19937 random(static_cast<unsigned>(comm->rank()));
  std::vector<int64_t> idx(tokens * topk);
  for (int call = 0; call < calls; ++call) {
    for (auto& expert : idx)
      expert = static_cast<int64_t>(random() % static_cast<unsigned>(shape.num_experts));
    for (size_t i = 0; i < x.size(); ++i) x[i] = number(comm->rank(), call, i / hidden);
    auto d = ep.dispatch(x.data(), {idx.data(), true, weights.data(), shape.max_tokens}, nullptr, -1);
    auto* out = reinterpret_cast<float*>(ep.output_buffer(*d, -1));
    const uint64_t each = d->format.scale_count();
    for (uint64_t row = 0; row < d->rows(); ++row) {
      const float expected =
          number(d->routing->src_rank[row], call, static_cast<size_t>(d->routing->src_token[row]));
      for (uint64_t block = 0; block < each; ++block)
        CHECK(close_to(d->scales()[row * each + block] * top, expected));
      for (size_t i = 0; i < hidden; ++i) out[row * hidden + i] = expected;
    }
    std::fill(y.begin(), y.end(), -1.0f);
    ep.combine(out, *d, nullptr, y.data(), -1);
    std::fill(out, out + d->rows() * hidden, -1.0f);  // the rows are the caller's again
    for (size_t i = 0; i < y.size(); ++i) CHECK(close_to(y[i], number(comm->rank(), call, i / hidden)));
  }
  ep.close();
}

}  // namespace

TEST("quantised rows stay right when ranks sleep between publishing and pulling") {
  test_point_hook = [](const char*) {
    thread_local std::mt19937 random(std::random_device{}());
    if (random() % 20 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
  };
  for (const bool direct : {true, false})
    for (const Quant quant : {Quant::int8, Quant::fp8_e4m3})
      test::on_ranks(3, test::local_config(direct), [&](Communicator&, std::shared_ptr<Communicator> comm) {
        EpShape shape{5, 200, 9, 2, RowType::float32};
        shape.dispatch_quant = shape.combine_quant = quant;
        play_quantised(comm, shape, even_placement(shape, 3), 30);
        // Replicas, an empty slot, a rank without any, and a third expert for every token.
        shape.shared_experts = {4};
        play_quantised(comm, shape, Placement(5, {3, 0, 4}, {0, 1, 4, -1, 2, 0, 3}), 30);
      });
  test_point_hook = nullptr;
}

TEST("one result combined again at once, from the same memory, gives a slow rank the sums of each call") {
  test_point_hook = [](const char* name) {
    static std::atomic<std::thread::id> slow{};
    std::thread::id none{};
    slow.compare_exchange_strong(none, std::this_thread::get_id());
    if (slow.load() == std::this_thread::get_id() && std::string(name) == "ep.arrived")
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
  };
  for (const bool direct : {true, false})
    test::on_ranks(2, test::local_config(direct), [](Communicator&, std::shared_ptr<Communicator> comm) {
      const EpShape shape{2, 4, 1, 2, RowType::float32};
      ExpertParallel ep(comm, shape, even_placement(shape, 2));
      const std::vector<int64_t> idx = {0, 1};
      const std::vector<float> x(4, 1.0f), weights(2, 1.0f);
      const auto d = ep.dispatch(x.data(), {idx.data(), true, weights.data(), 1}, nullptr, -1);
      std::vector<float> own(d->rows() * 4), y(4);
      for (int call = 1; call <= 40; ++call) {
        // From private memory, which is copied, and from the library's buffer.
        float* rows = call % 4 < 2 ? own.data() : reinterpret_cast<float*>(ep.output_buffer(*d, -1));
        std::fill_n(rows, own.size(), static_cast<float>(call));
        ep.combine(rows, *d, nullptr, y.data(), -1);
        CHECK(y == std::vector<float>(4, static_cast<float>(2 * call)));
      }
      ep.close();
    });
  test_point_hook = nullptr;
}

TEST("what a call that has been started still reads is not given out, and other threads are turned away") {
  for (const bool direct : {true, false})
    test::on_ranks(
        2, test::local_config(direct), [](Communicator& comm, std::shared_ptr<Communicator> shared) {
          ExpertParallel ep(shared, {4, 2, 3, 2, RowType::float32});
          const std::vector<float> weights = {1, 1};
          const std::vector<int64_t> idx = {0, 3};
          const TopK topk{idx.data(), true, weights.data(), 1};
          std::atomic<bool> stop{false};
          // Where ranks are served, another thread asks for what is not its own. It finds the object idle, or the call
          // started, or this thread inside; it never takes part in a call.
          std::thread stranger([&] {
            while (comm.rank() == 0 && !stop.load()) {
              try {
                ep.can_finish();
              } catch (const Error& error) {
                CHECK(error.status == Status::InvalidArgument);
              }
            }
          });
          const auto insist = [&](auto call) {
            for (;;) {
              try {
                return call();
              } catch (const Error& error) {  // the other thread was inside
                CHECK(std::string(error.what()).find("another thread") != std::string::npos);
              }
            }
          };
          for (int call = 0; call < 300; ++call) {
            auto* x = reinterpret_cast<float*>(insist([&] { return ep.input_buffer(1, -1); }));
            x[0] = x[1] = static_cast<float>(call);
            insist([&] { ep.start_dispatch(x, topk, nullptr, -1); });
            insist([&] { return ep.input_buffer(1, -1); });  // the other one
            const auto in_use = [&](auto take) {
              insist([&] {
                try {
                  take();
                } catch (const Error& error) {
                  if (std::string(error.what()).find("in use until") == std::string::npos) throw;
                  CHECK(error.status == Status::InvalidArgument);
                  return;
                }
                CHECK(false);
              });
            };
            in_use([&] { return ep.input_buffer(1, -1); });
            const auto d = insist([&] { return ep.finish_dispatch(-1); });
            auto* rows = reinterpret_cast<float*>(insist([&] { return ep.output_buffer(*d, -1); }));
            std::fill_n(rows, 2 * d->rows(), static_cast<float>(call));
            std::vector<float> y(2);
            insist([&] { ep.start_combine(rows, *d, nullptr, y.data(), -1); });
            in_use([&] { return ep.output_buffer(*d, -1); });
            insist([&] { ep.finish_combine(-1); });
            CHECK(y == std::vector<float>(2, static_cast<float>(2 * call)));
          }
          stop = true;
          stranger.join();
          ep.close();
        });
}

TEST("a routing is used again, also after its rows are gone, and a different one on one rank is a mismatch") {
  test::on_ranks(3, test::local_config(true), [](Communicator&, std::shared_ptr<Communicator> comm) {
    ExpertParallel ep(comm, {4, 2, 3, 2, RowType::float32});
    const std::vector<float> x = {1, 2, 3, 4, 5, 6}, weights(6, 0.5f);
    const std::vector<int64_t> idx = {0, 3, 1, -1, 2, 2};
    std::vector<std::shared_ptr<const Routing>> routings;
    for (int i = 0; i < 2; ++i)
      routings.push_back(ep.dispatch(x.data(), {idx.data(), true, weights.data(), 3}, nullptr, -1)->routing);
    for (int i = 0; i < 5; ++i) {
      auto d = ep.dispatch(x.data(), {nullptr, true, nullptr, 3}, routings[0], -1);
      std::vector<float> y(6);
      ep.combine(d->lease->slot().x.base(), *d, nullptr, y.data(), -1);
      CHECK((y == std::vector<float>{1, 2, 1.5f, 2, 5, 6}));
    }
    const Error error =
        CHECK_THROWS(ep.dispatch(x.data(), {nullptr, true, nullptr, 3}, routings[comm->rank() == 1], -1),
                     Status::Mismatch);
    CHECK(error.ranks == (comm->rank() == 1 ? std::vector<int>{0, 2} : std::vector<int>{1}));
  });
}

TEST("a rank that gives up in a call takes its rows from nobody who returns") {
  // Rank 0 times out after publishing and closes, which gives its memory back. Rank 2 is slow, rank 1 comes late, so
  // that all records are there when rank 2 looks: it must not return sums of memory that is gone.
  static std::atomic<bool> gone;
  gone = false;
  static thread_local bool slow = false;
  test_point_hook = [](const char* name) {
    if (slow && std::string(name) == "ep.arrived")
      while (!gone.load()) std::this_thread::yield();
  };
  test::on_ranks(3, test::local_config(true), [](Communicator& comm, std::shared_ptr<Communicator> shared) {
    ExpertParallel ep(shared, {3, 64, 3, 3, RowType::float32});
    slow = comm.rank() == 2;
    const std::vector<float> x(3 * 64, 5.0f), weights(9, 1.0f);
    const std::vector<int64_t> idx = {0, 1, 2, 0, 1, 2, 0, 1, 2};
    const TopK topk{idx.data(), true, weights.data(), 3};
    if (comm.rank() == 0) {
      CHECK_THROWS(ep.dispatch(x.data(), topk, nullptr, 0.05), Status::Timeout);
      ep.close();
      gone = true;
      return;
    }
    if (comm.rank() == 1) {
      while (!gone.load()) std::this_thread::yield();
      CHECK_THROWS(ep.dispatch(x.data(), topk, nullptr, -1), Status::PeerFailed);
      return;
    }
    CHECK_THROWS(ep.dispatch(x.data(), topk, nullptr, -1), Status::PeerFailed);
  });
  test_point_hook = nullptr;
}

TEST("lines that others may know are not given to the next object, others are") {
  static thread_local bool short_of_memory = false;
  test_point_hook = [](const char* name) {
    if (short_of_memory && std::string(name) == "ep.met") throw std::bad_alloc();
  };
  test::on_ranks(2, test::local_config(true), [](Communicator& comm, std::shared_ptr<Communicator> shared) {
    const auto next_lines = [&] {  // where the next object's would lie
      const uint64_t offset = comm.world().allocate_lines(Board::bytes(2));
      comm.world().free_lines(offset, Board::bytes(2));
      return offset;
    };
    const uint64_t before = next_lines();
    CHECK_THROWS(ExpertParallel(shared, {0, 2, 3, 2, RowType::float32}), Status::InvalidArgument);
    CHECK_THROWS(ExpertParallel(shared, {4, 2, 3 + comm.rank(), 2, RowType::float32}), Status::Mismatch);
    CHECK(next_lines() == before);

    short_of_memory = comm.rank() == 1;
    try {
      ExpertParallel ep(shared, {4, 2, 3, 2, RowType::float32});
      CHECK(!short_of_memory);
    } catch (const Error& error) {  // the other one, if it hears of it so soon
      CHECK(error.status == (short_of_memory ? Status::OutOfMemory : Status::PeerFailed));
      CHECK(!short_of_memory || next_lines() != before);
    }
    // The other one may have made its object, and must not wait for this one.
    CHECK_THROWS(barrier(comm), short_of_memory ? Status::OutOfMemory : Status::PeerFailed);
  });
  test_point_hook = nullptr;
}

TEST("close() that is interrupted has closed nevertheless") {
  struct interrupted {};
  static std::atomic<bool> through;
  through = false;
  static thread_local bool slow = false;
  test_point_hook = [](const char* name) {
    while (slow && std::string(name) == "ep.arrived" && !through.load()) std::this_thread::yield();
  };
  test::on_ranks(2, test::local_config(true), [](Communicator& comm, std::shared_ptr<Communicator> shared) {
    ExpertParallel ep(shared, {4, 2, 3, 2, RowType::float32});
    slow = comm.rank() == 1;  // it has not pulled yet when rank 0 closes
    const std::vector<float> x = {1, 2}, weights = {1, 1};
    const std::vector<int64_t> idx = {0, 3};
    ep.dispatch(x.data(), {idx.data(), true, weights.data(), 1}, nullptr, -1);
    if (comm.rank() == 0) {
      interrupt_check = [] { throw interrupted(); };
      try {
        ep.close();
        CHECK(false);
      } catch (const interrupted&) {
      }
      interrupt_check = nullptr;
      CHECK(ep.closed() &&
            comm.oldest_open() == UINT64_MAX);  // nothing is open: its lines go when all have closed
      through = true;
    }
  });
  test_point_hook = nullptr;
}

TEST("objects can be made and closed many times without using up the control segment") {
  test::on_ranks(2, test::local_config(true), [](Communicator&, std::shared_ptr<Communicator> comm) {
    for (int i = 0; i < 3000; ++i) {
      ExpertParallel ep(comm, {4, 2, 3, 2, RowType::float32});
      ep.close();
    }
    CHECK(comm->world().allocate_lines(64) < (1u << 20));
  });
}

TEST_MAIN()
