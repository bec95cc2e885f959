// Communicators of ranks that are threads: collectives under load, and what the survivors learn of an end.
#include "group/communicator.hpp"

#include <atomic>
#include <chrono>
#include <random>

#include "base/test_point.hpp"
#include "check.hpp"
#include "collective/all_gather.hpp"
#include "collective/barrier.hpp"
#include "collective/split.hpp"

using namespace xccl;

TEST("nobody leaves a barrier before everybody has come") {
  for (const bool direct : {true, false})
    for (const int size : {1, 2, 3, 5, 8}) {
      std::atomic<int> come{0};
      test::on_ranks(size, test::local_config(direct), [&](Communicator& comm, const auto&) {
        for (int round = 1; round <= 200; ++round) {
          come.fetch_add(1, std::memory_order_relaxed);
          barrier(comm);
          CHECK(come.load(std::memory_order_relaxed) >= round * size);
          barrier(comm);
        }
      });
    }
}

TEST("all_gather gives everybody's bytes in rank order, for any size, with slow ranks") {
  test_point_hook = [](const char*) {
    thread_local std::mt19937 random(std::random_device{}());
    if (random() % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  for (const bool direct : {true, false})
    for (const int size : {1, 2, 5})
      test::on_ranks(size, test::local_config(direct), [&](Communicator& comm, const auto&) {
        for (int round = 0; round < 40; ++round) {
          const uint64_t bytes =
              round == 7 ? 200'000 : static_cast<uint64_t>(round) * 37;  // 0, small, several rounds
          std::string mine(bytes, static_cast<char>('a' + comm.rank() + round % 7)),
              all(bytes * static_cast<uint64_t>(size), '?');
          all_gather(comm, mine.data(), all.data(), bytes);
          for (int rank = 0; rank < size; ++rank)
            CHECK(all.substr(bytes * static_cast<uint64_t>(rank), bytes) ==
                  std::string(bytes, static_cast<char>('a' + rank + round % 7)));
        }
      });
  test_point_hook = nullptr;
}

TEST("ranks that disagree about the size are told so on both sides") {
  test::on_ranks(3, test::local_config(true), [](Communicator& comm, const auto&) {
    char mine[16] = {}, all[48];
    const Error error =
        CHECK_THROWS(all_gather(comm, mine, all, comm.rank() == 2 ? 16 : 8), Status::Mismatch);
    CHECK(error.ranks == (comm.rank() == 2 ? std::vector<int>{0, 1} : std::vector<int>{2}));
    CHECK(error.op == "all_gather");
  });
}

TEST("a late rank is named by the timeout, and by what it does") {
  std::atomic<int> done{0};
  test::on_ranks(3, test::local_config(true), [&](Communicator& comm, const auto&) {
    if (comm.rank() == 1) {
      while (done.load() < 2) std::this_thread::yield();
      return;
    }
    // Each of the two may run out of time itself, or hear first that the other has.
    try {
      barrier(comm, 0.2);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.status == Status::Timeout || error.status == Status::PeerFailed);
      CHECK(error.message.find("rank 1: alive, in no XCCL call yet") != std::string::npos);
      if (error.status == Status::Timeout) CHECK(error.ranks == std::vector<int>{1});
    }
    done.fetch_add(1);
  });
}

TEST("a rank that gives up tells the others why") {
  test::on_ranks(3, test::local_config(true), [](Communicator& comm, const auto&) {
    if (comm.rank() == 1) {
      comm.abort("out of patience");
      CHECK_THROWS(barrier(comm), Status::Failure);
      return;
    }
    const Error error = CHECK_THROWS(barrier(comm), Status::PeerFailed);
    CHECK(error.ranks == std::vector<int>{1} && error.message.find("out of patience") != std::string::npos);
    CHECK_THROWS(barrier(comm), Status::PeerFailed);  // the first cause, again
  });
}

TEST("a call that is refused does not show") {
  std::atomic<bool> gone{false};
  test::on_ranks(2, test::local_config(true), [&](Communicator& comm, const auto&) {
    if (comm.rank() == 1) {
      comm.abort("out of patience");
      gone = true;
      return;
    }
    while (!gone.load()) std::this_thread::yield();
    CHECK_THROWS(barrier(comm), Status::PeerFailed);
    CHECK(comm.world().whereabouts(0) == "alive, in no XCCL call yet");
  });
}

// The sum of a rank's row, and its waits.
WaitCount waited_in_all(Communicator& comm, int waiter) {
  WaitCount out;
  const auto stats = comm.wait_stats();
  for (int late = 0; late < comm.size(); ++late) {
    const WaitCount& one = stats[static_cast<size_t>(waiter * comm.size() + late)];
    out.count += one.count, out.total_ns += one.total_ns;
    if (waiter == comm.rank()) CHECK(one.longest_ns <= one.total_ns);  // another's may just be changing
  }
  return out;
}

TEST("waits are logged by who waits and read by all at once, and only those that outlast their spin") {
  for (const bool direct : {true, false})
    for (const int64_t spin_us : {int64_t{0}, int64_t{20'000'000}}) {
      Config config = test::local_config(direct);
      config.spin_us = spin_us;
      test::on_ranks(4, config, [&](Communicator& comm, const auto&) {
        uint64_t before = 0;
        for (int round = 0; round < 20; ++round) {
          if (round % 4 == comm.rank()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
          barrier(comm);
          for (int rank = 0; rank < comm.size(); ++rank) waited_in_all(comm, rank);
          const uint64_t now = waited_in_all(comm, comm.rank()).total_ns;
          CHECK(now >= before);
          before = now;
        }
        barrier(comm);
        CHECK((waited_in_all(comm, comm.rank()).count > 0) == (spin_us == 0));
        comm.reset_wait_stats();
        CHECK(waited_in_all(comm, comm.rank()).count == 0);
      });
    }
}

TEST("a communicator that is forgotten ends like one that is closed, without harm to those still in a call") {
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 3; ++rank)
      ranks.emplace_back([rank, repeat] {
        auto comm =
            Communicator::init({"forgetful-" + std::to_string(repeat), rank, 3}, test::local_config(true));
        barrier(*comm);
        if (rank == 2) return;  // destroyed, not closed
        const Error error = CHECK_THROWS(barrier(*comm), Status::Closed);
        CHECK(error.ranks == std::vector<int>{2});
        comm->close();
      });
    for (auto& rank : ranks) rank.join();
  }
}

TEST("waiting for a rank that has closed ends with Closed") {
  test::on_ranks(2, test::local_config(true), [](Communicator& comm, const auto&) {
    if (comm.rank() == 1) return;  // closes
    const Error error = CHECK_THROWS(barrier(comm), Status::Closed);
    CHECK(error.ranks == std::vector<int>{1});
  });
}

TEST(
    "who has closed a sub-group without coming to its barrier ends it, whatever else it has done meanwhile") {
  std::atomic<bool> told{false};
  test::on_ranks(2, test::local_config(true), [&](Communicator& comm, const auto& whole) {
    const auto sub = split(whole, 0, 0);
    for (int i = 0; i < 5; ++i) barrier(comm);  // of the same name, and of a higher number
    if (comm.rank() == 0) {
      sub->close();
      while (!told.load()) std::this_thread::yield();
    } else {
      CHECK(CHECK_THROWS(barrier(*sub, 5), Status::Closed).ranks == std::vector<int>{0});
      told = true;
    }
  });
}

namespace {
thread_local bool slow_in_barriers = false;
}

TEST(
    "who has come to a sub-group's barrier may close it, and do other things, before the others are "
    "through") {
  test_point_hook = [](const char* name) {
    if (slow_in_barriers && name == std::string("barrier.signalled"))
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
  };
  test::on_ranks(3, test::local_config(true), [](Communicator& comm, const auto& whole) {
    const auto sub = split(whole, 0, 0);
    slow_in_barriers = comm.rank() == 2;  // rank 0 is through after its first signal, rank 1 needs its second
    barrier(*sub);
    sub->close();
    char mine = 0, all[3];
    all_gather(comm, &mine, all, 1);
  });
  test_point_hook = nullptr;
}

TEST("who cannot make its part of a sub-group tells the others") {
  static thread_local bool short_of_memory = false;
  test_point_hook = [](const char* name) {
    if (short_of_memory && name == std::string("split.met")) throw std::bad_alloc();
  };
  test::on_ranks(3, test::local_config(true), [](Communicator& comm, const auto& whole) {
    short_of_memory = comm.rank() == 1;
    try {
      split(whole, 0, 0, 20);
      CHECK(false);
    } catch (const Error& error) {
      const Status status = short_of_memory ? Status::OutOfMemory : Status::PeerFailed;
      CHECK(error.status == status && error.op == "split");
      if (!short_of_memory) CHECK(error.ranks == std::vector<int>{1});
      CHECK_THROWS(barrier(comm), status);  // the first cause stays
    }
  });
  test_point_hook = nullptr;
}

TEST("the deadline of a split is that of all its rounds") {
  static thread_local bool is_late = false;
  test_point_hook = [](const char* name) {
    if (is_late && name == std::string("split.met"))
      std::this_thread::sleep_for(std::chrono::milliseconds(600));
  };
  test::on_ranks(2, test::local_config(true), [](Communicator& comm, const auto& whole) {
    is_late = comm.rank() == 1;
    if (is_late) std::this_thread::sleep_for(std::chrono::milliseconds(600));
    try {
      split(whole, 0, 0, is_late ? 60 : 1);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.status == (is_late ? Status::PeerFailed : Status::Timeout));
    }
  });
  test_point_hook = nullptr;
}

TEST("two threads in one communicator are told apart") {
  std::atomic<bool> inside{false};
  test_point_hook = nullptr;
  test::on_ranks(2, test::local_config(true), [&](Communicator& comm, const auto&) {
    if (comm.rank() == 1) {
      while (!inside.load()) std::this_thread::yield();
      barrier(comm);
      return;
    }
    std::thread other([&] {
      for (bool refused = true; refused;) {
        try {
          barrier(comm);
          refused = false;
        } catch (const Error& error) {
          CHECK(error.status == Status::InvalidArgument);  // the probe below was inside
        }
      }
    });
    // Once inside, the other thread cannot leave the barrier before rank 1 comes, which waits for us.
    for (bool refused = false; !refused;) {
      try {
        uint64_t calls = 0;
        comm.operate("probe", calls, 1, [](Operation&) {});
      } catch (const Error& error) {
        refused = error.status == Status::InvalidArgument;
      }
    }
    inside = true;
    other.join();
  });
}

TEST("a thread that is refused has touched nothing of what the other one uses") {
  // For ThreadSanitizer.
  test::on_ranks(1, test::local_config(true), [](Communicator& comm, const auto&) {
    const auto gather = [&] {
      for (int i = 0; i < 2000; ++i) {
        char mine = 0, all = 0;
        try {
          all_gather(comm, &mine, &all, 1);
        } catch (const Error& error) {
          CHECK(error.status == Status::InvalidArgument);
        }
      }
    };
    std::thread other(gather);
    gather();
    other.join();
  });
}

TEST("who fails to join a group says so there, where the others wait for it") {
  static thread_local bool fails = false;
  static std::atomic<int> joined;
  test_point_hook = [](const char* name) {
    if (!fails || std::string(name) != "split.connecting") return;
    while (joined < 2) std::this_thread::yield();
    fail(Status::OutOfMemory, "no room to join");
  };
  for (const bool direct : {true, false}) {
    joined = 0;
    test::on_ranks(3, test::local_config(direct), [](Communicator& comm, const auto& whole) {
      fails = comm.rank() == 1;
      if (fails) {
        CHECK_THROWS(split(whole, 0, 0), Status::OutOfMemory);
        return;
      }
      const auto group = split(whole, 0, 0);
      ++joined;
      const Error error = CHECK_THROWS(barrier(*group), Status::PeerFailed);
      CHECK(error.ranks == std::vector<int>{1});
      CHECK(error.message.find("no room to join") != std::string::npos);
    });
  }
  test_point_hook = nullptr;
}

TEST("a close does not wait for a rank that has given up because of a third") {
  static std::atomic<int> done;
  static std::atomic<bool> gone, closed;
  static thread_local bool waits = false;
  test_point_hook = [](const char* name) {
    while (waits && std::string(name) == "exchange.pulled" && !gone) std::this_thread::yield();
  };
  done = 0;
  gone = closed = false;
  Config config = test::local_config(true);
  config.timeout = 3600;  // so that what waits for the deadline does not end
  test::on_ranks(3, config, [](Communicator& comm, const auto&) {
    waits = comm.rank() == 1;
    const int mine = comm.rank();
    int all[3];
    if (comm.rank() == 1) {  // it never finishes this call, and stays
      CHECK_THROWS(all_gather(comm, &mine, all, sizeof mine), Status::PeerFailed);
      while (!closed) std::this_thread::yield();
      return;
    }
    all_gather(comm, &mine, all, sizeof mine);
    ++done;
    if (comm.rank() == 2) {
      while (done < 2) std::this_thread::yield();
      comm.abort("enough");
      gone = true;
      return;
    }
    comm.close();
    closed = true;
  });
  test_point_hook = nullptr;
}

TEST_MAIN()
