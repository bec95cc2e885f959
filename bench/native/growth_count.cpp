// One dispatch and one combine of rank 0 among many ranks, each in a function of its own that a counter of
// instructions can be told to look at (bench/growth.py). The other ranks, threads of this process, have published before,
// so rank 0 waits for nobody, and what is counted is its own work.
//
//   growth_count RANKS dispatch|combine
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "collective/barrier.hpp"
#include "moe/expert_parallel.hpp"

using namespace xccl;

namespace {

struct Round {
  ExpertParallel& ep;
  std::vector<int64_t> experts;
  std::vector<float> weights, x, y;
  std::shared_ptr<Dispatched> d;

  explicit Round(ExpertParallel& ep)
      : ep(ep),
        experts(static_cast<size_t>(ep.shape().max_tokens * ep.shape().topk)),
        weights(experts.size(), 1),
        x(static_cast<size_t>(ep.shape().max_tokens * ep.shape().hidden), 1),
        y(x.size()) {
    // As many rows to every expert, so that rows do not vary with the number of ranks, but to another rank each.
    for (size_t i = 0; i < experts.size(); ++i) experts[i] = static_cast<int64_t>(i) % ep.shape().num_experts;
  }
  void dispatch() {
    d = ep.dispatch(x.data(), {experts.data(), true, weights.data(), ep.shape().max_tokens}, nullptr, -1);
  }
  void combine() { ep.combine(d->lease->slot().x.base(), *d, nullptr, y.data(), -1); }
};

// The empty statement after each call keeps it from being a jump, with which the counter would not see it end.
[[gnu::noinline]] void measured_dispatch(Round& round) {
  round.dispatch();
  asm volatile("");
}
[[gnu::noinline]] void measured_combine(Round& round) {
  round.combine();
  asm volatile("");
}

void let_the_others_publish(int ranks) {
  std::this_thread::sleep_for(std::chrono::milliseconds(500 + 40 * ranks));
}

void run(int rank, int ranks, bool counts_dispatch) {
  Config config;
  config.provider = "local";
  config.timeout = config.startup_timeout = 600;
  const auto comm = Communicator::init({"growth", rank, ranks}, config);
  EpShape shape{256, 64, 32, 8};  // 32 tokens, each to 8 of 256 experts
  ExpertParallel ep(comm, shape);
  Round round(ep);
  for (int warm = 0; warm < 3; ++warm) round.dispatch(), round.combine(), round.d.reset();
  barrier(*comm);
  if (rank == 0) let_the_others_publish(ranks);
  rank == 0 && counts_dispatch ? measured_dispatch(round) : round.dispatch();
  if (rank == 0) let_the_others_publish(ranks);
  rank == 0 && !counts_dispatch ? measured_combine(round) : round.combine();
  round.d.reset();
  ep.close();
  comm->close();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: growth_count RANKS dispatch|combine\n");
    return 2;
  }
  const int ranks = std::atoi(argv[1]);
  const bool counts_dispatch = std::string(argv[2]) == "dispatch";
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank, ranks, counts_dispatch);
  for (auto& thread : threads) thread.join();
}
