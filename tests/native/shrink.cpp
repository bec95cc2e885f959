// Shrink among ranks that are threads: the survivors agree, whoever leaves and whenever, and their new communicator works.
// A thread cannot die: it leaves by abort or close. Processes that are killed: tests/test_shrink.py.
#include "group/shrink.hpp"

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "base/test_point.hpp"
#include "check.hpp"
#include "collective/all_gather.hpp"
#include "collective/barrier.hpp"
#include "collective/split.hpp"
#include "p2p/point_to_point.hpp"

using namespace xccl;

namespace {

using Shared = std::shared_ptr<Communicator>;

void both_ways(int size, const std::function<void(Communicator&, const Shared&)>& body) {
  for (const bool direct : {true, false})
    test::on_ranks(size, test::local_config(direct), body, PointToPoint::annex_bytes);
}

// The ranks in the job of all members, as they tell each other.
std::vector<int> members_of(Communicator& comm) {
  const int mine = comm.world().rank();
  std::vector<int> all(static_cast<size_t>(comm.size()));
  all_gather(comm, &mine, all.data(), sizeof mine);
  return all;
}

void check_all_works(const Shared& comm) {
  barrier(*comm);
  PointToPoint p2p(comm);
  const int size = comm->size(), rank = comm->rank();
  for (const uint64_t count : {uint64_t{3}, uint64_t{3000}, uint64_t{300'000}}) {
    std::vector<int> out(count, rank), in(count, -1);
    p2p.sendrecv(out.data(), 4 * count, (rank + 1) % size, 5, in.data(), 4 * count, (rank + size - 1) % size,
                 5);
    CHECK(in == std::vector<int>(count, (rank + size - 1) % size));
  }
  const auto sub = split(comm, rank % 2, 0);
  CHECK(sub->size() == (size + 1 - rank % 2) / 2);
  barrier(*sub);
  sub->close();
  p2p.close();
}

thread_local const char* leave_at = nullptr;  // the step at which this rank leaves
thread_local int steps_to_go = 0;             // how often it passes that step before
thread_local std::minstd_rand luck;
struct Gone {};

void leave_or_dawdle(const char* step) {
  if (leave_at && std::string(step) == leave_at && steps_to_go-- == 0) throw Gone();
  if (luck() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(luck() % 2000));
}

}  // namespace

TEST("those who are left when a rank has aborted have a communicator in which everything works") {
  both_ways(4, [](Communicator& comm, const Shared& whole) {
    if (comm.rank() == 1) {
      comm.abort("enough");
      CHECK(CHECK_THROWS(shrink(whole), Status::Closed).op == "");
      return;
    }
    const Error cause = CHECK_THROWS(barrier(comm), Status::PeerFailed);
    const auto survivors = shrink(whole, 20);
    CHECK(survivors->size() == 3);
    CHECK(members_of(*survivors) == (std::vector<int>{0, 2, 3}));
    check_all_works(survivors);
    // The old one still refuses, with the first cause.
    const Error again = CHECK_THROWS(barrier(comm), Status::PeerFailed);
    CHECK(again.ranks == cause.ranks && again.op == cause.op && again.seq == cause.seq);
    survivors->close();
  });
}

TEST("shrinking a communicator in which nothing has failed duplicates it, and leaves it usable") {
  both_ways(3, [](Communicator& comm, const Shared& whole) {
    const auto first = shrink(whole), second = shrink(whole);
    for (const auto& one : {first, whole, second}) {
      CHECK(members_of(*one) == (std::vector<int>{0, 1, 2}));
      if (one != whole) check_all_works(one);
    }
    const auto sub = split(whole, 0, 0);
    barrier(*sub);
    first->close();
    second->close();
    sub->close();
    barrier(comm);
  });
}

TEST("a rank whose call has failed takes part, one that has closed does not") {
  std::atomic<int> through{0};
  std::atomic<bool> late{false};
  test::on_ranks(4, test::local_config(true), [&](Communicator& comm, const Shared& whole) {
    barrier(comm);
    ++through;
    if (comm.rank() == 3) return;  // closes
    if (comm.rank() == 0) {
      while (through < 4) std::this_thread::yield();  // or the failure may reach others in that barrier
      uint64_t calls = 0;
      CHECK_THROWS(comm.operate("call", calls, 1,
                                [](Operation& op) {
                                  op.publish();
                                  fail(Status::OutOfMemory, "no memory for what has come");
                                }),
                   Status::OutOfMemory);
      late = true;
    } else {
      while (!late) std::this_thread::yield();
      CHECK(CHECK_THROWS(barrier(comm), Status::PeerFailed).ranks == std::vector<int>{0});
    }
    const auto survivors = shrink(whole);
    CHECK(members_of(*survivors) == (std::vector<int>{0, 1, 2}));
    survivors->close();
  });
}

TEST("shrink names those who do not come in time, and goes on when it is called again") {
  std::atomic<int> given_up{0};
  both_ways(4, [&](Communicator& comm, const Shared& whole) {
    if (comm.rank() == 3) return comm.abort("enough");
    if (comm.rank() == 1) {
      while (given_up < 4) std::this_thread::yield();
    } else {
      for (int repeat = 0; repeat < 2; ++repeat) {
        const Error error = CHECK_THROWS(shrink(whole, 0.05), Status::Timeout);
        CHECK(error.ranks == std::vector<int>{1} && error.op == "shrink" && error.phase == "meeting");
        CHECK(error.message.find("rank 1: ") != std::string::npos);
        given_up.fetch_add(1);
      }
    }
    const auto survivors = shrink(whole, 30);
    if (comm.rank() == 1) given_up = 0;
    CHECK(members_of(*survivors) == (std::vector<int>{0, 1, 2}));
    survivors->close();
  });
}

TEST("a rank that gives up waiting in the middle may come back, or leave: the others learn which") {
  for (const bool comes_back : {true, false})
    for (const char* step : {"shrink.arrived", "shrink.decided", "shrink.joined"}) {
      std::atomic<bool> left{false};
      test_point_hook = leave_or_dawdle;
      test::on_ranks(3, test::local_config(true), [&](Communicator& comm, const Shared& whole) {
        if (comm.rank() == 1) {
          leave_at = step;
          steps_to_go = 0;
          try {
            shrink(whole);
            CHECK(false);
          } catch (const Gone&) {
          }
          leave_at = nullptr;
          if (!comes_back) {
            comm.close();
            left = true;
            return;
          }
        }
        auto survivors = shrink(whole, 30);
        if (!comes_back) {
          // It was among them if its card was there. Then it is gone from the new one, which can shrink again.
          while (!left) std::this_thread::yield();
          if (survivors->size() == 3) {
            CHECK(CHECK_THROWS(barrier(*survivors, 30), Status::Closed).ranks == std::vector<int>{1});
            survivors = shrink(survivors, 30);
          }
        }
        CHECK(members_of(*survivors) == (comes_back ? std::vector<int>{0, 1, 2} : std::vector<int>{0, 2}));
        survivors->close();
      });
      test_point_hook = nullptr;
    }
}

TEST("all agree on who is left, whoever leaves at whatever step") {
  test_point_hook = leave_or_dawdle;
  static const char* const steps[] = {"shrink.arrived", "shrink.deciding", "shrink.decided", "shrink.joined"};
  for (unsigned round = 0; round < 150; ++round) {
    constexpr int size = 6;
    std::minstd_rand plan(round + 1);
    std::vector<const char*> leaves(size, nullptr);
    std::vector<int> passes(size, 0), expected;
    leaves[plan() % 2] = steps[plan() % 4];  // often the rank that decides
    for (size_t rank = 0; rank < size; ++rank) {
      if (plan() % 4 == 0) leaves[rank] = steps[plan() % 4];
      passes[rank] = plan() % 4 == 0;
      if (rank == size - 1) leaves[rank] = nullptr;
      // Only the first that is left decides: who should leave there, but never comes to it, survives.
    }
    std::atomic<int> stayed{0};
    std::vector<std::vector<int>> found(size);
    test::on_ranks(size, test::local_config(round % 2), [&](Communicator& comm, const Shared& whole) {
      const auto rank = static_cast<size_t>(comm.rank());
      luck.seed(round * 100 + static_cast<unsigned>(rank) + 7);
      leave_at = leaves[rank];
      steps_to_go = passes[rank];
      std::vector<Shared> made{whole};
      try {
        for (;;) {
          made.push_back(shrink(made.back(), 50));
          try {
            found[rank] = members_of(*made.back());
            break;
          } catch (const Error& error) {
            CHECK(error.status == Status::Closed || error.status == Status::PeerFailed);
          }
        }
        stayed.fetch_add(1);
      } catch (const Gone&) {
        if (rank % 2)
          for (const auto& one : made) one->abort("gone");
      }
      leave_at = nullptr;
      std::reverse(made.begin(), made.end());
      for (const auto& one : made) one->close();
    });
    for (const auto& one : found)
      if (!one.empty()) {
        if (expected.empty()) expected = one;
        CHECK(one == expected);
        CHECK(std::is_sorted(one.begin(), one.end()));
      }
    CHECK(static_cast<int>(expected.size()) == stayed);
    for (size_t rank = 0; rank < size; ++rank)
      CHECK(found[rank].empty() == !std::count(expected.begin(), expected.end(), static_cast<int>(rank)));
  }
  test_point_hook = nullptr;
}

TEST("another thread's abort ends a shrink under way") {
  std::atomic<bool> ended{false};
  test::on_ranks(2, test::local_config(true), [&](Communicator& comm, const Shared& whole) {
    if (comm.rank() == 0) {
      std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        comm.abort("no more");
      });
      CHECK_THROWS(shrink(whole, 30), Status::Closed);
      other.join();
      ended = true;
      return;
    }
    while (!ended) std::this_thread::yield();
    CHECK_THROWS(barrier(comm), Status::PeerFailed);
    const auto alone = shrink(whole);
    CHECK(alone->size() == 1 && alone->rank() == 0);
    barrier(*alone);
    alone->close();
  });
}

TEST("an abort after a failure that others know is no cause, but leaves the rank out") {
  test::on_ranks(4, test::local_config(true), [&](Communicator& comm, const Shared& whole) {
    if (comm.rank() == 0) return comm.abort("the cause");
    const Error error = CHECK_THROWS(barrier(comm), Status::PeerFailed);
    CHECK(error.ranks == std::vector<int>{0});
    if (comm.rank() == 1) {
      comm.abort("I leave as well");
      const Error mine = CHECK_THROWS(barrier(comm), Status::PeerFailed);
      CHECK(mine.message.find("the cause") != std::string::npos);
      return;
    }
    const auto survivors = shrink(whole);
    CHECK(members_of(*survivors) == (std::vector<int>{2, 3}));
    const Error again = CHECK_THROWS(barrier(comm), Status::PeerFailed);
    CHECK(again.ranks == std::vector<int>{0});
    survivors->close();
  });
}

TEST("sub-groups shrink, and so do communicators that have shrunk before") {
  std::atomic<int> through{0};  // nobody is in the call before any more
  both_ways(5, [&](Communicator& comm, const Shared& whole) {
    if (comm.rank() == 4) through = 0;
    const auto sub = split(whole, comm.rank() == 4 ? -1 : 0, -comm.rank());  // 3 2 1 0
    if (!sub) return barrier(comm);
    if (comm.rank() == 2) sub->abort("enough");
    if (comm.rank() != 2) {
      CHECK(CHECK_THROWS(barrier(*sub), Status::PeerFailed).ranks == std::vector<int>{2});
      const auto three = shrink(sub);
      CHECK(members_of(*three) == (std::vector<int>{3, 1, 0}));
      through.fetch_add(1);
      while (through < 3) std::this_thread::yield();
      if (comm.rank() == 3) three->abort("enough");
      if (comm.rank() != 3) {
        CHECK(CHECK_THROWS(barrier(*three), Status::PeerFailed).ranks == std::vector<int>{3});
        const auto two = shrink(three);
        CHECK(members_of(*two) == (std::vector<int>{1, 0}));
        check_all_works(two);
        two->close();
      }
      three->close();
    }
    sub->close();
    barrier(comm);  // has not been touched by any of it
  });
}

TEST("more members than bits in a word") {
  Config config = test::local_config(true);
  test::on_ranks(67, config, [](Communicator& comm, const Shared& whole) {
    if (comm.rank() == 65) return comm.abort("enough");
    const auto survivors = shrink(whole);
    CHECK(survivors->size() == 66);
    CHECK(survivors->rank() == comm.rank() - (comm.rank() > 65));
    barrier(*survivors);
    survivors->close();
  });
}

TEST("what shrinking takes is given back, as by split") {
  both_ways(3, [](Communicator& comm, const Shared& whole) {
    uint64_t before = 0;
    for (int round = 0; round < 200; ++round) {
      const auto again = shrink(whole);
      barrier(*again);
      again->close();
      barrier(comm);
      if (round == 20) before = comm.world().provider().committed_bytes();
    }
    CHECK(comm.world().provider().committed_bytes() <= before);
  });
}

TEST("shrinking and splitting in turn never confuses what is closed with what is not") {
  both_ways(2, [](Communicator& comm, const Shared& whole) {
    std::minstd_rand plan(5);
    std::vector<Shared> alive;
    for (int round = 0; round < 100; ++round) {
      alive.push_back(plan() % 2 ? shrink(whole) : split(whole, 0, 0));
      if (plan() % 3 == 0) barrier(comm);
      for (const auto& one : alive) CHECK(members_of(*one) == (std::vector<int>{0, 1}));
      if (alive.size() > 4) {
        const size_t gone = plan() % alive.size();
        alive[gone]->close();
        alive.erase(alive.begin() + static_cast<long>(gone));
      }
    }
    for (const auto& one : alive) one->close();
  });
}

TEST_MAIN()
