// Messages between ranks that are threads: every path, every boundary, wildcards, borrowed messages, giving up.
#include "p2p/point_to_point.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "base/test_point.hpp"
#include "check.hpp"
#include "collective/barrier.hpp"
#include "collective/split.hpp"

using namespace xccl;

namespace {

void on_points(int size, const Config& config, const std::function<void(PointToPoint&)>& body) {
  test::on_ranks(
      size, config,
      [&](Communicator&, std::shared_ptr<Communicator> comm) {
        PointToPoint p2p(comm);
        body(p2p);
        p2p.close();
      },
      PointToPoint::annex_bytes);
}

void both_ways(int size, const std::function<void(PointToPoint&)>& body) {
  for (const bool direct : {true, false}) on_points(size, test::local_config(direct), body);
}

// Memory of the application area or of this process alone.
class Memory {
 public:
  Memory(PointToPoint& p2p, uint64_t bytes, bool area) : world_(p2p.comm().world()), area_(area) {
    data_ = area ? world_.heap().allocate(bytes) : new std::byte[bytes ? bytes : 1];
  }
  ~Memory() { area_ ? world_.heap().free(data_) : delete[] data_; }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* get() { return data_; }

 private:
  World& world_;
  bool area_;
  std::byte* data_;
};

void fill(std::byte* data, uint64_t bytes, uint64_t seed) {
  for (uint64_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>(seed * 131 + i * 7 + (i >> 8));
}
bool is_filled(const std::byte* data, uint64_t bytes, uint64_t seed) {
  for (uint64_t i = 0; i < bytes; ++i)
    if (data[i] != static_cast<std::byte>(seed * 131 + i * 7 + (i >> 8))) return false;
  return true;
}

const std::vector<uint64_t> sizes = {0, 1, 47, 48, 49, 64, 1000, 8191, 8192, 8193, 100'000, 5'000'001};

}  // namespace

TEST("a message of every size arrives whole, from and into both kinds of memory, and to oneself") {
  both_ways(2, [](PointToPoint& p2p) {
    const int rank = p2p.comm().rank();
    for (const uint64_t bytes : sizes)
      for (const int kinds : {0, 1, 2, 3}) {
        Memory from(p2p, bytes, kinds & 1), to(p2p, bytes, kinds & 2);
        fill(from.get(), bytes, bytes + 3);
        if (rank == 0) {
          p2p.send(from.get(), bytes, 1, 7);
        } else {
          const MessageInfo info = p2p.recv(to.get(), bytes, 0, 7);
          CHECK(info.source == 0 && info.tag == 7 && info.bytes == bytes);
          CHECK(is_filled(to.get(), bytes, bytes + 3));
        }
        Memory own(p2p, bytes, kinds & 2);
        const auto request = p2p.isend(from.get(), bytes, rank, 9);
        p2p.recv(own.get(), bytes, rank, 9);
        p2p.wait(*request);
        CHECK(is_filled(own.get(), bytes, bytes + 3));
      }
  });
}

TEST("a thousand sends before the first receive, received in reverse order of tags") {
  both_ways(2, [](PointToPoint& p2p) {
    constexpr int count = 1000;
    std::vector<std::vector<std::byte>> arrays;
    for (int i = 0; i < count; ++i) arrays.emplace_back(static_cast<size_t>(i * 37 % 9000));
    if (p2p.comm().rank() == 0) {
      std::vector<std::shared_ptr<Request>> requests;
      for (int i = 0; i < count; ++i) {
        auto& array = arrays[static_cast<size_t>(i)];
        fill(array.data(), array.size(), static_cast<uint64_t>(i));
        requests.push_back(p2p.isend(array.data(), array.size(), 1, i));
      }
      barrier(p2p.comm());
      for (const auto& request : requests) p2p.wait(*request);
    } else {
      barrier(p2p.comm());
      for (int i = count; i-- > 0;) {
        auto& array = arrays[static_cast<size_t>(i)];
        CHECK(p2p.recv(array.data(), array.size(), 0, i).bytes == array.size());
        CHECK(is_filled(array.data(), array.size(), static_cast<uint64_t>(i)));
      }
    }
  });
}

// Everybody sends everybody random messages, with few tags, in windows of requests; each rank knows the whole plan.
static void storm(PointToPoint& p2p, int messages, uint64_t seed) {
  struct Planned {
    int source, target, tag;
    uint64_t bytes, content;
    bool from_area, into_area;
  };
  const int size = p2p.comm().size(), rank = p2p.comm().rank();
  std::mt19937_64 plan(seed);
  std::vector<Planned> mine;
  for (int i = 0; i < messages; ++i) {
    const uint64_t bytes = plan() % 4 ? sizes[plan() % 10] : plan() % 70'000;
    const Planned one{static_cast<int>(plan() % static_cast<uint64_t>(size)),
                      static_cast<int>(plan() % static_cast<uint64_t>(size)),
                      static_cast<int>(plan() % 3),
                      bytes,
                      plan(),
                      plan() % 2 == 0,
                      plan() % 2 == 0};
    if (one.source == rank || one.target == rank) mine.push_back(one);
  }
  struct Live {
    std::unique_ptr<Memory> memory;
    std::shared_ptr<Request> request;
    Planned plan;
    bool receives;
  };
  std::mt19937_64 luck(seed * 31 + static_cast<uint64_t>(rank));
  std::vector<Live> live;
  const auto retire = [&](size_t at) {
    Live& one = live[at];
    const MessageInfo info = p2p.wait(*one.request);
    if (one.receives) {
      CHECK(info.bytes == one.plan.bytes && info.tag == one.plan.tag && info.source == one.plan.source);
      CHECK(is_filled(one.memory->get(), one.plan.bytes, one.plan.content));
    }
    live.erase(live.begin() + static_cast<long>(at));
  };
  for (const Planned& one : mine) {
    // Receives first: a send to oneself must find its receive, later messages of others theirs.
    if (one.target == rank) {
      auto memory = std::make_unique<Memory>(p2p, one.bytes, one.into_area);
      auto request = p2p.irecv(memory->get(), one.bytes, one.source, one.tag);
      live.push_back({std::move(memory), std::move(request), one, true});
    }
    if (one.source == rank) {
      auto memory = std::make_unique<Memory>(p2p, one.bytes, one.from_area);
      fill(memory->get(), one.bytes, one.content);
      auto request = p2p.isend(memory->get(), one.bytes, one.target, one.tag);
      live.push_back({std::move(memory), std::move(request), one, false});
    }
    // In order of posting: waiting for a later one first could wait for a message that its sender will send only after
    // it has got what this rank has not yet sent.
    while (live.size() > 1 + luck() % 64) retire(0);
  }
  while (!live.empty()) retire(0);
}

TEST("a storm of messages among four ranks") {
  both_ways(4, [](PointToPoint& p2p) { storm(p2p, 3000, 17); });
}

TEST("the storm with every message announced") {
  Config config = test::local_config(true);
  config.eager_limit = 0;
  on_points(3, config, [](PointToPoint& p2p) { storm(p2p, 1500, 18); });
}

TEST("the storm with a thread of each rank at work as well") {
  Config config = test::local_config(true);
  config.progress_thread = true;
  on_points(4, config, [](PointToPoint& p2p) { storm(p2p, 3000, 20); });
}

TEST("the storm with ranks delayed at every step") {
  test_point_hook = [](const char*) {
    static thread_local std::minstd_rand luck(std::random_device{}());
    if (luck() % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(luck() % 300));
  };
  both_ways(3, [](PointToPoint& p2p) { storm(p2p, 1500, 19); });
  test_point_hook = nullptr;
}

TEST("messages of a pair and tag come in order, also from anywhere with any tag") {
  both_ways(3, [](PointToPoint& p2p) {
    constexpr uint64_t count = 500;
    if (p2p.comm().rank() != 0) {
      for (uint64_t i = 0; i < count; ++i) {
        std::vector<uint64_t> message(i % 5 == 0 ? 2000 : 1, i);
        p2p.send(message.data(), 8 * message.size(), 0, static_cast<int>(i % 7));
      }
      return;
    }
    std::vector<uint64_t> next(3, 0), message(2000);
    for (uint64_t i = 0; i < 2 * count; ++i) {
      const MessageInfo there = p2p.probe(any_source, any_tag);
      const MessageInfo info = p2p.recv(message.data(), 16'000, any_source, any_tag);
      CHECK(there.source == info.source && there.tag == info.tag && there.bytes == info.bytes);
      CHECK(message[0] == next[static_cast<size_t>(info.source)]++);
      CHECK(info.tag == static_cast<int>(message[0] % 7));
    }
    CHECK(!p2p.iprobe(any_source, any_tag));
  });
}

TEST("a message that does not fit stays for a larger receive") {
  both_ways(2, [](PointToPoint& p2p) {
    for (const uint64_t bytes : {uint64_t{40}, uint64_t{4000}, uint64_t{40'000}}) {
      std::vector<std::byte> array(bytes);
      if (p2p.comm().rank() == 0) {
        fill(array.data(), bytes, 5);
        p2p.send(array.data(), bytes, 1, 0);
        continue;
      }
      const Error error = CHECK_THROWS(p2p.recv(array.data(), bytes - 1, 0, 0), Status::Truncated);
      CHECK(std::string(error.what()).find(std::to_string(bytes)) != std::string::npos);
      const auto small = p2p.irecv(array.data(), bytes - 1, 0, 0);
      CHECK_THROWS(p2p.wait(*small), Status::Truncated);
      CHECK(p2p.recv(array.data(), bytes, any_source, any_tag).bytes == bytes);
      CHECK(is_filled(array.data(), bytes, 5));
    }
  });
}

TEST("a receive that gives up takes nothing, also in the middle of a message") {
  both_ways(2, [](PointToPoint& p2p) {
    constexpr uint64_t bytes = 30'000'000;
    std::vector<std::byte> array(bytes);
    if (p2p.comm().rank() == 0) {
      barrier(p2p.comm());
      fill(array.data(), bytes, 6);
      const auto request = p2p.isend(array.data(), bytes, 1, 3);
      p2p.test(*request);
      barrier(p2p.comm());  // helps rank 1, then leaves the library for a while
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      p2p.wait(*request);
      return;
    }
    CHECK_THROWS(p2p.recv(array.data(), bytes, 0, 3, 0.02), Status::Timeout);
    barrier(p2p.comm());
    barrier(p2p.comm());
    int tries = 0;
    for (;; ++tries) try {
        p2p.recv(array.data(), bytes, 0, 3, 0.002);
        break;
      } catch (const Error& error) {
        CHECK(error.status == Status::Timeout);
        CHECK(error.ranks == std::vector<int>{0});
      }
    CHECK(tries > 0);
    CHECK(is_filled(array.data(), bytes, 6));
  });
}

TEST("a send that gives up was not sent, and what is sent again comes once") {
  for (const bool area : {false, true})
    both_ways(2, [area](PointToPoint& p2p) {
      constexpr uint64_t bytes = 100'000;
      Memory memory(p2p, bytes, area);
      if (p2p.comm().rank() == 0) {
        fill(memory.get(), bytes, 1);
        CHECK(CHECK_THROWS(p2p.send(memory.get(), bytes, 1, 0, 0.02), Status::Timeout).ranks ==
              std::vector<int>{1});
        std::memset(memory.get(), 0, bytes);  // it may be reused
        barrier(p2p.comm());
        fill(memory.get(), bytes, 2);
        p2p.send(memory.get(), bytes, 1, 0);
      } else {
        barrier(p2p.comm());
        p2p.recv(memory.get(), bytes, 0, 0);
        CHECK(is_filled(memory.get(), bytes, 2));
        CHECK(!p2p.iprobe(any_source, any_tag));
      }
      barrier(p2p.comm());
    });
}

// Private arrays and those of the application area, received and borrowed: streamed, pulled, claimed.
static void give_up_often(PointToPoint& p2p, bool area, bool borrowed) {
  constexpr uint64_t bytes = 20'000, rounds = 150;
  if (p2p.comm().rank() == 0) {
    // One for each message, and none is written again: that a receiver may read it once more after the sender has given
    // up is part of the protocol, and is what ThreadSanitizer would see.
    std::vector<std::unique_ptr<Memory>> messages;
    for (uint64_t i = 0; i < rounds; ++i) {
      messages.push_back(std::make_unique<Memory>(p2p, bytes, area));
      fill(messages.back()->get(), bytes, i);
    }
    for (uint64_t i = 0; i < rounds; ++i) {
      for (bool sent = false; !sent;) try {
          p2p.send(messages[i]->get(), bytes, 1, 0, 20e-6 * static_cast<double>(i % 10));
          sent = true;
        } catch (const Error& error) {
          CHECK(error.status == Status::Timeout);
          sent = error.phase == "lent";
        }
    }
    p2p.send(nullptr, 0, 1, 1);
    barrier(p2p.comm());
    return;
  }
  std::vector<std::byte> array(bytes);
  for (uint64_t i = 0; i < rounds; ++i) {
    if (i % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(i % 200));
    if (borrowed) {
      const auto view = p2p.recv_view(0, 0);
      CHECK(view->info.bytes == bytes && is_filled(view->data, bytes, i));
      view->released = true;
    } else {
      CHECK(p2p.recv(array.data(), bytes, 0, 0).bytes == bytes);
      CHECK(is_filled(array.data(), bytes, i));
    }
  }
  CHECK(p2p.recv(array.data(), bytes, 0, any_tag).tag == 1);
  barrier(p2p.comm());
}

TEST("sends that give up just when they are answered come once or not at all") {
  both_ways(2, [](PointToPoint& p2p) {
    for (const bool area : {false, true})
      for (const bool borrowed : {false, true}) give_up_often(p2p, area, borrowed);
  });
}

// Two ranks driven by one thread, so that a test can put their steps in the order that it is about.
class Pair {
 public:
  Pair() {
    static int pairs = 0;
    const std::string job = "pair-" + std::to_string(++pairs);
    std::thread threads[2];
    for (const int rank : {0, 1})
      threads[rank] = std::thread([&, rank] {
        comms_[rank] =
            Communicator::init({job, rank, 2}, test::local_config(true), PointToPoint::annex_bytes);
      });
    for (std::thread& thread : threads) thread.join();
    for (const int rank : {0, 1}) points_[rank] = std::make_unique<PointToPoint>(comms_[rank]);
    test_point_hook = &reached;
  }
  ~Pair() {
    at(nullptr, nullptr);
    long_wait = nullptr;
    test_point_hook = nullptr;
  }
  PointToPoint& sender() { return *points_[0]; }
  PointToPoint& receiver() { return *points_[1]; }

  // The receiver's answers have to wait: the ring to the sender is full.
  void fill_ring_to_sender() {
    static const int word = 0;
    for (int i = 0; i < 300; ++i) receiver().isend(&word, sizeof word, 0, 9);
  }
  // A send that is not answered in time. `meanwhile` is done when it begins to wait.
  void give_up(const std::vector<std::byte>& array, int tag, std::function<void()> meanwhile) {
    at("waiting", std::move(meanwhile));
    CHECK_THROWS(sender().send(array.data(), array.size(), 1, tag, 0.001), Status::Timeout);
  }
  // `work` is done by this thread when it next comes to the step.
  static void at(const char* step, std::function<void()> work) {
    awaited = step;
    todo = std::move(work);
    long_wait = [](bool begins) {
      if (begins) reached("waiting");
    };
  }

 private:
  static void reached(const char* step) {
    if (todo && std::string(step) == awaited) std::exchange(todo, nullptr)();
  }
  static thread_local const char* awaited;
  static thread_local std::function<void()> todo;

  std::shared_ptr<Communicator> comms_[2];
  std::unique_ptr<PointToPoint> points_[2];
};

thread_local const char* Pair::awaited = nullptr;
thread_local std::function<void()> Pair::todo;

const std::vector<std::byte> announced(20'000, std::byte{1});

TEST("bytes of the next message on a stream are not taken for those of one that was taken back") {
  Pair pair;
  std::vector<std::byte> a(announced.size()), b(announced.size()), other(announced.size(), std::byte{2});
  std::shared_ptr<Request> first, second;
  std::thread receiver;
  std::atomic<bool> drained{false}, streamed{false};
  const auto sent = pair.sender().isend(other.data(), other.size(), 1, 2);
  pair.receiver().advance();
  // Matched while the answers have to wait, so that the sender takes the first back.
  Pair::at("waiting", [&] {
    pair.fill_ring_to_sender();
    pair.receiver().advance();
    first = pair.receiver().irecv(a.data(), a.size(), 0, 1);
    second = pair.receiver().irecv(b.data(), b.size(), 0, 2);
    // The answers go out between the sender's last look at them and its verdict, which the receiver does not yet see.
    Pair::at("p2p.verdict", [&] {
      receiver = std::thread([&] {
        Pair::at("p2p.drained", [&] {
          drained = true;
          while (!streamed) std::this_thread::yield();
        });
        pair.receiver().advance();
      });
      while (!drained) std::this_thread::yield();
    });
  });
  CHECK_THROWS(pair.sender().send(announced.data(), announced.size(), 1, 1, 0.001), Status::Timeout);
  while (!pair.sender().test(*sent)) {
  }
  streamed = true;
  receiver.join();
  CHECK(!first->finished());
  CHECK(pair.receiver().test(*second));
  CHECK(b == other);
}

TEST("bytes copied ahead of an answer are never another message's") {
  Pair pair;
  constexpr uint64_t bytes = 40'000;
  std::vector<std::byte> arrays[3], into(bytes);
  for (const int tag : {0, 1, 2}) {
    arrays[tag].resize(bytes);
    fill(arrays[tag].data(), bytes, static_cast<uint64_t>(tag));
  }
  bool ahead = false;
  const auto send = [&](int tag) { return pair.sender().isend(arrays[tag].data(), bytes, 1, tag); };
  const auto go_ahead = [&](const std::function<void()>& begin) {
    ahead = false;
    Pair::at("p2p.ahead", [&] { ahead = true; });
    begin();
    for (int i = 0; i < 10; ++i) pair.sender().advance();
    return ahead;
  };
  const auto receive = [&](int tag) {
    const auto received = pair.receiver().irecv(into.data(), bytes, 0, tag);
    while (!pair.receiver().test(*received)) pair.sender().advance();
    CHECK(is_filled(into.data(), bytes, static_cast<uint64_t>(tag)));
  };
  std::shared_ptr<Request> taken_back;
  CHECK(go_ahead([&] { send(0); }));
  CHECK(!go_ahead([&] { taken_back = send(1); }));  // of the first only
  send(2);
  receive(2);  // another one is answered
  receive(0);
  CHECK(go_ahead([] {}));
  CHECK(pair.sender().cancel(*taken_back));
  send(2);
  receive(2);
}

TEST("an empty message that was announced is not both received and taken back") {
  Pair pair;
  static const int word = 0;
  for (int i = 0; i < 8192; ++i) {  // as many as are buffered
    pair.sender().isend(&word, sizeof word, 1, 9);
    if (i % 100 == 0) pair.receiver().advance();
    if (i % 100 == 0) pair.sender().advance();
  }
  pair.receiver().advance();
  std::shared_ptr<Request> receive;
  pair.give_up({}, 1, [&] {
    pair.receiver().advance();
    pair.fill_ring_to_sender();
    receive = pair.receiver().irecv(nullptr, 0, 0, 1);
    pair.receiver().advance();
  });
  CHECK(!pair.receiver().test(*receive));
  const auto sent = pair.sender().isend(nullptr, 0, 1, 1);
  for (int i = 0; i < 3; ++i) pair.receiver().advance(), pair.sender().advance();
  CHECK(pair.sender().test(*sent) && pair.receiver().test(*receive));
}

TEST("a receive whose message was taken back waits in its old place") {
  Pair pair;
  int first = 0, message = 5;
  std::vector<std::byte> second(announced.size());
  std::shared_ptr<Request> receives[2];
  pair.give_up(announced, 7, [&] {
    pair.receiver().advance();
    pair.fill_ring_to_sender();
    receives[0] = pair.receiver().irecv(&first, 4, 0, 5);
    receives[1] = pair.receiver().irecv(second.data(), second.size(), 0, any_tag);
  });
  pair.receiver().advance();
  pair.sender().send(&message, 4, 1, 5);
  pair.receiver().advance();
  CHECK(receives[0]->finished() && !receives[1]->finished());
}

TEST("a receive does not overtake another one while its message is held back") {
  Pair pair;
  std::vector<std::byte> first(announced.size()), second(announced.size());
  std::shared_ptr<Request> receives[2];
  std::atomic<bool> held{false}, given_up{false};
  receives[0] = pair.receiver().irecv(first.data(), first.size(), 0, 5);
  const auto sent = pair.sender().isend(announced.data(), announced.size(), 1, 5);
  // The sender takes another message back; its verdict comes while the receiver takes one back itself.
  std::thread sender([&] {
    Pair::at("p2p.verdict", [&] {
      held = true;
      while (!given_up) std::this_thread::yield();
    });
    CHECK_THROWS(pair.sender().send(announced.data(), announced.size(), 1, 6, 0.001), Status::Timeout);
  });
  while (!held) std::this_thread::yield();
  pair.receiver().advance();
  CHECK(!receives[0]->finished());
  Pair::at("p2p.withdrawing", [&] {
    given_up = true;
    sender.join();
  });
  CHECK_THROWS(pair.receiver().send(announced.data(), announced.size(), 0, 8, 0.001), Status::Timeout);
  receives[1] = pair.receiver().irecv(second.data(), second.size(), 0, any_tag);
  for (int i = 0; i < 3; ++i) pair.receiver().advance(), pair.sender().advance();
  CHECK(receives[0]->finished() && !receives[1]->finished());
}

TEST("a request can be taken back as long as nothing has matched it, on every path") {
  both_ways(2, [](PointToPoint& p2p) {
    Communicator& comm = p2p.comm();
    for (const uint64_t bytes : {uint64_t{10}, uint64_t{4000}, uint64_t{100'000}, uint64_t{5'000'001}})
      for (const bool area : {false, true}) {
        Memory memory(p2p, bytes, area);
        const bool buffered = bytes <= 4000;
        if (comm.rank() == 0) {
          fill(memory.get(), bytes, 1);
          auto owner = std::make_shared<int>();
          const std::weak_ptr<void> kept = owner;
          const auto request = p2p.isend(memory.get(), bytes, 1, 1, std::move(owner));
          CHECK(p2p.cancel(*request) == !buffered);  // what is buffered has been sent
          CHECK(p2p.cancel(*request) == !buffered && request->finished() && kept.expired());
          if (buffered) CHECK(p2p.wait(*request).bytes == bytes);
          if (!buffered) CHECK_THROWS(p2p.wait(*request), Status::Closed);
          if (!buffered) CHECK_THROWS(p2p.test(*request), Status::Closed);
          fill(memory.get(), bytes, 2);
          barrier(comm);
          // A message that has been matched goes its way.
          const auto matched = p2p.isend(memory.get(), bytes, 1, 2);
          barrier(comm);
          CHECK(!p2p.cancel(*matched));
          CHECK(p2p.wait(*matched).bytes == bytes);
        } else {
          barrier(comm);
          if (buffered) p2p.recv(memory.get(), bytes, 0, 1);
          const auto request = p2p.irecv(memory.get(), bytes, 0, 2);
          while (request->state == Request::State::posted) p2p.test(*request);
          barrier(comm);
          p2p.wait(*request);
          CHECK(is_filled(memory.get(), bytes, 2));
          CHECK(!p2p.cancel(*request));
        }
        barrier(comm);
      }
  });
}

TEST("a receive whose bytes are on their way cannot be taken back, from wherever they come") {
  for (const int source : {0, any_source}) {
    Pair pair;
    std::vector<std::byte> into(announced.size());
    const auto sent = pair.sender().isend(announced.data(), announced.size(), 1, 1);
    const auto received = pair.receiver().irecv(into.data(), into.size(), source, 1);
    CHECK(!received->finished() && !pair.receiver().cancel(*received));
    while (!pair.receiver().test(*received)) pair.sender().advance();
    CHECK(into == announced && pair.sender().test(*sent));
  }
}

TEST("what fails just when it has been announced is in no queue any more") {
  Pair pair;
  const std::vector<std::byte> large(announced);
  Pair::at("p2p.offered", [] { throw std::bad_alloc(); });
  bool failed = false;
  try {
    pair.sender().isend(large.data(), large.size(), 1, 1);
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  CHECK(failed);
  for (int i = 0; i < 10; ++i) pair.sender().advance();  // would read the request, which is gone
}

TEST("a receive that was taken back takes nothing, and a send behind a full ring sends nothing") {
  std::atomic<bool> taken_back{false};
  both_ways(2, [&](PointToPoint& p2p) {
    Communicator& comm = p2p.comm();
    int word = 1;
    if (comm.rank() == 0) {
      taken_back = false;
      barrier(comm);
      // More than there is room for with the receiver, which reads none of them: the last ones wait with this rank.
      std::vector<std::shared_ptr<Request>> requests;
      const auto owner = std::make_shared<int>();
      for (int i = 0; i < 1000; ++i) requests.push_back(p2p.isend(&word, 4, 1, 3, owner));
      CHECK(!requests.back()->finished());
      CHECK(p2p.cancel(*requests.back()) && !p2p.cancel(*requests.front()));
      requests.pop_back();
      taken_back = true;
      for (const auto& request : requests) p2p.wait(*request);
      p2p.send(&word, 4, 1, 4);
      CHECK(owner.use_count() == 1);
      return;
    }
    int got = 0;
    const auto first = p2p.irecv(&got, 4, 0, any_tag), wild = p2p.irecv(&got, 4, any_source, any_tag);
    CHECK(p2p.cancel(*wild) && p2p.cancel(*first));
    CHECK_THROWS(p2p.wait(*first), Status::Closed);
    barrier(comm);
    while (!taken_back) std::this_thread::yield();
    for (int i = 0; i < 999; ++i) p2p.recv(&word, 4, 0, 3);
    CHECK(p2p.probe(0, any_tag).tag == 4);  // no other
    p2p.recv(&word, 4, 0, 4);
    CHECK(got == 0);
  });
}

TEST("a message that is borrowed cannot be taken back") {
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    constexpr uint64_t bytes = 20'000;
    Memory memory(p2p, bytes, true);
    if (p2p.comm().rank() == 1) {
      const auto view = p2p.recv_view(0, 1);
      barrier(p2p.comm());
      barrier(p2p.comm());
      view->released = true;
      return barrier(p2p.comm());
    }
    const auto request = p2p.isend(memory.get(), bytes, 1, 1);
    barrier(p2p.comm());
    CHECK(!p2p.cancel(*request) && !request->finished());
    barrier(p2p.comm());
    p2p.wait(*request);
    barrier(p2p.comm());
  });
}

TEST("sends and receives that are taken back just when they meet have happened on both sides or on none") {
  test_point_hook = [](const char*) {
    static thread_local std::minstd_rand luck(std::random_device{}());
    if (luck() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(luck() % 100));
  };
  constexpr int count = 400;
  constexpr uint64_t bytes = 60'000;
  for (const bool direct : {true, false})
    for (const bool area : {false, true}) {
      std::vector<char> sent(count), got(count);
      int both = 0;
      on_points(2, test::local_config(direct), [&](PointToPoint& p2p) {
        std::minstd_rand luck(static_cast<unsigned>(p2p.comm().rank() + 2 * area + 1));
        for (int i = 0; i < count; ++i) {
          Memory memory(p2p, bytes, area);
          const bool sends = p2p.comm().rank() == 0;
          if (sends) fill(memory.get(), bytes, static_cast<uint64_t>(i));
          const auto request =
              sends ? p2p.isend(memory.get(), bytes, 1, i) : p2p.irecv(memory.get(), bytes, 0, i);
          barrier(p2p.comm());  // so that they are about to meet
          for (unsigned steps = luck() % 4; steps-- > 0;) p2p.test(*request);
          const auto deadline = Deadline(30);
          bool withdrawn = false;
          // A receive that has met a message may lose it again, to its sender: then it can be taken back.
          while (!(withdrawn = p2p.cancel(*request)) && !request->finished()) {
            CHECK(!deadline.passed());
            p2p.test(*request);
          }
          (sends ? sent : got)[static_cast<size_t>(i)] = !withdrawn;
          if (!sends && !withdrawn) CHECK(is_filled(memory.get(), bytes, static_cast<uint64_t>(i)));
        }
        barrier(p2p.comm());
        CHECK(!p2p.iprobe(any_source, any_tag));
      });
      for (size_t i = 0; i < count; ++i) {
        CHECK(sent[i] == got[i]);
        both += got[i];
      }
      CHECK(both > 0 && both < count);
    }
  test_point_hook = nullptr;
}

TEST("messages that receives have given up in the middle keep their order") {
  Pair pair;
  const std::vector<std::byte> large(6'000'000);
  std::vector<std::byte> into(large.size());
  const auto first = pair.sender().isend(large.data(), large.size(), 1, 1),
             second = pair.sender().isend(large.data(), large.size(), 1, 2);
  const auto last = pair.sender().isend(large.data(), large.size(), 1, 3);
  for (const int tag : {1, 2}) {
    CHECK_THROWS(pair.receiver().recv(into.data(), into.size(), 0, tag, 0.001), Status::Timeout);
    pair.sender().advance();
  }
  for (const int tag : {1, 2, 3}) {
    CHECK(pair.receiver().probe(0, any_tag).tag == tag);
    const auto receive = pair.receiver().irecv(into.data(), into.size(), 0, any_tag);
    while (!pair.receiver().test(*receive)) pair.sender().advance();
    CHECK(pair.receiver().wait(*receive).tag == tag);
  }
}

TEST("a send that cannot give up for want of memory ends the communicator, instead of mixing up its stream") {
  Pair pair;
  const std::vector<std::byte> large(10'000'000);
  std::vector<std::byte> into(large.size());
  std::shared_ptr<Request> receive;
  Pair::at("waiting", [&] {
    pair.receiver().advance();
    receive = pair.receiver().irecv(into.data(), into.size(), 0, 1);
    Pair::at("p2p.detaching", [] { throw std::bad_alloc(); });
  });
  CHECK_THROWS(pair.sender().send(large.data(), large.size(), 1, 1, 0.01), Status::OutOfMemory);
  CHECK_THROWS(pair.receiver().wait(*receive), Status::PeerFailed);
}

TEST("a receive for which memory is short fails, and its message stays") {
  const auto short_of_memory = [] { Pair::at("p2p.preparing", [] { throw std::bad_alloc(); }); };
  for (const bool receive_first : {false, true}) {
    Pair pair;
    int word = 5;
    const auto array = std::make_shared<int>();
    pair.sender().send(&word, 4, 1, 2);
    if (!receive_first) pair.receiver().advance();
    short_of_memory();
    const auto receive = pair.receiver().irecv(&word, 4, 0, 2, array);
    CHECK_THROWS(pair.receiver().wait(*receive), Status::OutOfMemory);
    CHECK(array.use_count() == 1);
    short_of_memory();
    CHECK_THROWS(pair.receiver().recv_view(0, 2), Status::OutOfMemory);
    CHECK(*reinterpret_cast<const int*>(pair.receiver().recv_view(0, 2)->data) == 5);
  }
}

TEST("an array that its sender takes back and frees just when it is received is not missed") {
  Pair pair;
  constexpr uint64_t bytes = 300'000;  // a region of its own
  std::vector<std::byte> into(bytes);
  std::thread sender([&] {
    Memory memory(pair.sender(), bytes, true);
    CHECK_THROWS(pair.sender().send(memory.get(), bytes, 1, 1, 0.05), Status::Timeout);
  });
  while (!pair.receiver().iprobe(0, 1)) std::this_thread::yield();
  Pair::at("p2p.preparing", [&] { sender.join(); });
  const auto receive = pair.receiver().irecv(into.data(), bytes, 0, 1);
  CHECK(!pair.receiver().test(*receive));
  pair.sender().send(into.data(), 4, 1, 1);
  CHECK(pair.receiver().wait(*receive).bytes == 4);
}

TEST("a peer that posts without end does not keep a call from ending") {
  constexpr int receives = 40'000;
  Pair pair;
  int finished = 0;
  // Each message that is taken makes another one come.
  const auto send = [&](void*) {
    if (++finished < receives) pair.sender().send(nullptr, 0, 1, 1);
  };
  for (int i = 0; i < receives; ++i)
    pair.receiver().irecv(nullptr, 0, 0, 1, std::shared_ptr<void>(&pair, send));
  pair.sender().send(nullptr, 0, 1, 1);
  pair.receiver().try_advance();
  CHECK(finished > 0 && finished < receives);
  while (finished < receives) pair.receiver().try_advance();
}

TEST("a message that another thread has borrowed is written again only when that has read it") {
  both_ways(2, [](PointToPoint& p2p) {
    constexpr uint64_t bytes = 20'000;
    Memory memory(p2p, bytes, true);
    fill(memory.get(), bytes, 1);
    if (p2p.comm().rank() == 0) {
      p2p.wait(*p2p.isend(memory.get(), bytes, 1, 1));
      std::memset(memory.get(), 0, bytes);
      return barrier(p2p.comm());
    }
    auto view = p2p.recv_view(0, 1);
    std::thread reader([borrowed = std::move(view)]() mutable {
      CHECK(is_filled(borrowed->data, bytes, 1));
      borrowed.reset();
    });
    barrier(p2p.comm());  // comes when the sender has heard that the view has gone
    reader.join();
  });
}

TEST("a sendrecv that is late has taken nothing, and its error tells whether it has sent") {
  Pair pair;
  int message = 5, got = 0;
  pair.receiver().send(&message, 4, 0, 2);
  Error late = CHECK_THROWS(
      pair.sender().sendrecv(announced.data(), announced.size(), 1, 1, &got, 4, 1, 2, 0.01), Status::Timeout);
  CHECK(late.op == "send");
  CHECK(!pair.receiver().iprobe(0, 1));
  got = 0;
  pair.sender().recv(&got, 4, 1, 2, 0.01);
  CHECK(got == 5);
  late = CHECK_THROWS(pair.sender().sendrecv(&message, 4, 1, 1, &got, 4, 1, 2, 0.01), Status::Timeout);
  CHECK(late.op == "sendrecv" && late.phase == "sent, receiving");
  CHECK(pair.receiver().iprobe(0, 1));
}

TEST("a send whose message is borrowed for too long has sent it; its array is kept until it is given back") {
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    constexpr uint64_t bytes = 20'000;
    Memory memory(p2p, bytes, true);
    int word = 0;
    fill(memory.get(), bytes, 3);
    if (p2p.comm().rank() == 1) {
      const auto view = p2p.recv_view(0, 1);
      p2p.recv(&word, 4, 0, 2);
      CHECK(is_filled(view->data, bytes, 3));
      view->released = true;
      barrier(p2p.comm());
      CHECK(!p2p.iprobe(0, 1));
      barrier(p2p.comm());
      return;
    }
    std::weak_ptr<void> kept;
    const auto keep = [&] {
      const auto owner = std::make_shared<int>();
      kept = owner;
      return owner;
    };
    for (std::string phase; phase != "lent";)
      phase = CHECK_THROWS(p2p.send(memory.get(), bytes, 1, 1, 0.01, keep), Status::Timeout).phase;
    CHECK(!kept.expired());
    p2p.send(&word, 4, 1, 2);
    barrier(p2p.comm());
    while (!kept.expired()) p2p.iprobe(1, 9);
    barrier(p2p.comm());
  });
}

TEST("borrowed messages are read where they lie, and their senders go on when they are released") {
  both_ways(2, [](PointToPoint& p2p) {
    for (const uint64_t bytes : sizes)
      for (const bool area : {false, true}) {
        Memory memory(p2p, bytes, area);
        fill(memory.get(), bytes, 8);
        if (p2p.comm().rank() == 0) {
          p2p.send(memory.get(), bytes, 1, 2);
          continue;
        }
        const auto view = p2p.recv_view(any_source, 2);
        CHECK(view->info.bytes == bytes && view->info.source == 0);
        CHECK(is_filled(view->data, bytes, 8));
        view->released = true;
        p2p.iprobe(any_source, any_tag);  // any call tells the sender
      }
  });
}

TEST("what goes wrong in the background is told to the others, and to the call that waits meanwhile") {
  test_point_hook = [](const char* name) {
    if (std::strcmp(name, "p2p.returning") == 0) fail(Status::OutOfMemory, "no memory to go on");
  };
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    constexpr uint64_t bytes = 100'000;
    Memory memory(p2p, bytes, true);
    if (p2p.comm().rank() == 1) {
      p2p.recv_view(0, 0)->released = true;  // whoever waits next tells the sender
      CHECK_THROWS(barrier(p2p.comm()), Status::OutOfMemory);
      return;
    }
    const auto request = p2p.isend(memory.get(), bytes, 1, 0);
    const Error error = CHECK_THROWS(p2p.wait(*request), Status::PeerFailed);
    CHECK(error.ranks == std::vector<int>{1});
    CHECK(error.message.find("no memory to go on") != std::string::npos);
  });
  test_point_hook = nullptr;
}

TEST("a view that may not have a message's size does not get it, nor what comes instead of one taken back") {
  static std::atomic<bool> taken_back, asked;
  test_point_hook = [](const char* name) {
    if (std::strcmp(name, "p2p.withdrawing") != 0) return;
    taken_back = true;
    while (!asked) std::this_thread::yield();
    std::this_thread::sleep_for(
        std::chrono::milliseconds(5));  // the receiver has met the offer, and doubts it
  };
  for (const bool direct : {true, false}) {
    taken_back = asked = false;
    on_points(2, test::local_config(direct), [](PointToPoint& p2p) {
      constexpr uint64_t bytes = 100'000, fewer = 10;
      Memory memory(p2p, bytes, true);
      fill(memory.get(), bytes, 3);
      if (p2p.comm().rank() == 0) {
        CHECK_THROWS(p2p.send(memory.get(), bytes, 1, 0, 0.05), Status::Timeout);
        p2p.send(memory.get(), fewer, 1, 0);
        p2p.send(memory.get(), bytes, 1, 1);
        return;
      }
      while (!p2p.iprobe(0, 0)) std::this_thread::yield();
      while (!taken_back) std::this_thread::yield();
      asked = true;
      CHECK(CHECK_THROWS(p2p.recv_view(0, 0, -1, {.exactly = bytes}), Status::InvalidArgument).ranks ==
            std::vector<int>{0});
      CHECK_THROWS(p2p.recv_view(0, 0, -1, {.multiple_of = 4}), Status::InvalidArgument);
      CHECK(p2p.recv_view(0, 0, -1, {.multiple_of = 5})->info.bytes == fewer);
      CHECK_THROWS(p2p.recv_view(0, 1, -1, {.exactly = fewer}), Status::InvalidArgument);
      const auto view = p2p.recv_view(0, 1, -1, {.exactly = bytes});
      CHECK(view->info.bytes == bytes && is_filled(view->data, bytes, 3));
    });
  }
  test_point_hook = nullptr;
}

TEST("ranks with nothing to do help in barriers, and small messages beyond every buffer wait without harm") {
  both_ways(2, [](PointToPoint& p2p) {
    constexpr int count = 20'000;
    if (p2p.comm().rank() == 0) {
      std::vector<std::shared_ptr<Request>> requests;
      std::vector<int> words(count);
      for (int i = 0; i < count; ++i) {
        words[static_cast<size_t>(i)] = i;
        requests.push_back(p2p.isend(&words[static_cast<size_t>(i)], sizeof i, 1, 5));
      }
      p2p.send(&count, sizeof count, 1, 6);
      // As many as are buffered; the others are announced, and wait for their receives.
      CHECK(std::ranges::count_if(requests, [](const auto& request) { return request->finished(); }) == 8192);
      barrier(p2p.comm());
      for (const auto& request : requests) p2p.wait(*request);
      return;
    }
    int got = 0;
    p2p.recv(&got, sizeof got, 0, 6);  // another tag passes all of them
    CHECK(got == count);
    barrier(p2p.comm());
    for (int i = 0; i < count; ++i) {
      p2p.recv(&got, sizeof got, 0, 5);
      CHECK(got == i);
    }
  });
}

TEST("a rank that closes at once leaves what is still on its streams") {
  for (int i = 0; i < 20; ++i)
    both_ways(2, [](PointToPoint& p2p) {
      std::vector<std::byte> array(1'000'000);
      if (p2p.comm().rank() == 0) {
        fill(array.data(), array.size(), 4);
        p2p.send(array.data(), array.size(), 1, 0);
        return;  // and closes
      }
      const auto request = p2p.irecv(array.data(), array.size(), 0, 0);
      while (!p2p.test(*request)) std::this_thread::sleep_for(std::chrono::microseconds(50));
      CHECK(is_filled(array.data(), array.size(), 4));
    });
}

TEST("two communicators used by a thread each do not disturb each other") {
  const auto body = [](Communicator& comm, const std::shared_ptr<Communicator>& shared) {
    const int peer = 1 - comm.rank();
    PointToPoint p2p(shared), other(split(shared, 0, 0));
    std::atomic<bool> done{false};
    std::thread second([&] {
      int word;
      while (!done) CHECK_THROWS(other.recv(&word, 4, peer, 5, 0.0005), Status::Timeout);
    });
    for (uint64_t i = 0; i < 120; ++i) {
      const uint64_t bytes = sizes[i % sizes.size()] % 1'000'000;
      Memory from(p2p, bytes, i & 1), to(p2p, bytes, i & 2);
      fill(from.get(), bytes, i);
      CHECK(p2p.sendrecv(from.get(), bytes, peer, 1, to.get(), bytes, peer, 1).bytes == bytes);
      CHECK(is_filled(to.get(), bytes, i));
      CHECK(!p2p.iprobe(peer, 2));
      // Progress is made by the second thread alone.
      const auto receive = p2p.irecv(to.get(), bytes, peer, 3), send = p2p.isend(from.get(), bytes, peer, 3);
      while (!receive->finished()) std::this_thread::yield();
      CHECK(is_filled(to.get(), bytes, i) && p2p.test(*receive));
      p2p.wait(*send);
    }
    done = true;
    second.join();
    barrier(comm);
    other.close();
    other.comm().close();
    p2p.close();
  };
  for (const bool direct : {true, false})
    test::on_ranks(2, test::local_config(direct), body, PointToPoint::annex_bytes);
}

TEST("a call holds its communicator from its beginning to its end, also between its spin and its wait") {
  static PointToPoint* points = nullptr;
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    std::vector<std::byte> array(20'000);
    barrier(p2p.comm());
    if (p2p.comm().rank() == 0) {
      points = &p2p;
      long_wait = [](bool begins) {
        if (begins) std::thread([] { CHECK_THROWS(points->iprobe(1, 9), Status::InvalidArgument); }).join();
      };
      p2p.send(array.data(), array.size(), 1, 0);
      p2p.recv(array.data(), array.size(), 1, 0);
      p2p.wait(*p2p.irecv(array.data(), array.size(), 1, 0));
      p2p.probe(1, 0);
      p2p.recv_view(1, 0);
      p2p.sendrecv(array.data(), array.size(), 1, 0, array.data(), array.size(), 1, 0);
      long_wait = nullptr;
      return;
    }
    const auto late = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
    late();
    p2p.recv(array.data(), array.size(), 0, 0);
    for (int i = 0; i < 4; ++i) {
      late();
      p2p.send(array.data(), 8, 0, 0);
    }
    late();
    p2p.sendrecv(array.data(), 8, 0, 0, array.data(), array.size(), 0, 0);
  });
}

TEST("a second thread may abort, which ends the call that the first is inside, here and elsewhere") {
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    int word;
    if (p2p.comm().rank() == 1) {
      CHECK_THROWS(p2p.recv(&word, 4, 0, 0), Status::PeerFailed);
      return;
    }
    std::thread second([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      p2p.comm().abort("seen enough");
    });
    const Error error = CHECK_THROWS(p2p.recv(&word, 4, 1, 0), Status::Failure);
    CHECK(std::string(error.what()).find("seen enough") != std::string::npos);
    second.join();
  });
}

[[gnu::noinline]] static void overwrite_stack() {
  volatile char used[16'384];
  for (volatile char& byte : used) byte = 0x41;
}

TEST("a sendrecv that ends with its communicator leaves nothing of itself behind") {
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    std::vector<std::byte> array(100'000);
    int word;
    if (p2p.comm().rank() == 1) {
      p2p.probe(0, 1);
      p2p.comm().abort("on purpose");
      return;
    }
    CHECK_THROWS(p2p.sendrecv(array.data(), array.size(), 1, 1, &word, 4, 1, 2), Status::PeerFailed);
    overwrite_stack();
    p2p.close();
  });
}

TEST("wrong arguments are named, and nothing is sent") {
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    int word = 0;
    CHECK_THROWS(p2p.send(&word, 4, 2, 0), Status::InvalidArgument);
    CHECK_THROWS(p2p.send(&word, 4, any_source, 0), Status::InvalidArgument);
    CHECK_THROWS(p2p.send(&word, 4, 0, any_tag), Status::InvalidArgument);
    CHECK_THROWS(p2p.recv(&word, 4, -2, 0), Status::InvalidArgument);
    CHECK_THROWS(p2p.recv(&word, 4, 0, -2), Status::InvalidArgument);
    barrier(p2p.comm());
    CHECK(!p2p.iprobe(any_source, any_tag));
  });
}

TEST("who waits for a rank that has closed is told, and messages sent before still come") {
  on_points(2, test::local_config(true), [](PointToPoint& p2p) {
    int word = 41;
    if (p2p.comm().rank() == 0) {
      p2p.send(&word, 4, 1, 0);
      p2p.close();
      p2p.comm().close();
      return;
    }
    word = 0;
    p2p.recv(&word, 4, 0, 0);
    CHECK(word == 41);
    CHECK_THROWS(p2p.recv(&word, 4, 0, 0), Status::Closed);
    CHECK_THROWS(p2p.recv(&word, 4, any_source, 0), Status::Closed);
  });
}

TEST("what a rank has announced ends with its close, and what it had buffered still comes") {
  test::on_ranks(
      2, test::local_config(true),
      [](Communicator& comm, const std::shared_ptr<Communicator>& shared) {
        PointToPoint p2p(shared);
        constexpr uint64_t bytes = 100'000;
        std::vector<std::byte> array(bytes);
        int word = 3;
        barrier(comm);
        if (comm.rank() == 0) {
          std::optional<Memory> memory(std::in_place, p2p, bytes, true);
          fill(memory->get(), bytes, 1);
          const auto request = p2p.isend(memory->get(), bytes, 1, 3);
          p2p.isend(&word, 4, 1, 4);
          interrupt_check = [] { throw Error(Status::Failure, "Ctrl-C"); };  // rank 1 does not come
          CHECK_THROWS(p2p.close(), Status::Failure);
          interrupt_check = nullptr;
          CHECK_THROWS(p2p.wait(*request), Status::Closed);
          std::memset(memory->get(), 0, bytes);
          memory.reset();
          return;
        }
        while (comm.running(0)) std::this_thread::yield();
        CHECK_THROWS(p2p.recv(array.data(), bytes, 0, 3), Status::Closed);
        p2p.recv(&word, 4, 0, 4);
        CHECK(word == 3);
        CHECK_THROWS(p2p.probe(0, 3), Status::Closed);
        p2p.close();
      },
      PointToPoint::annex_bytes);
}

TEST("a message that was answered before its sender closed is received, though the next one was taken back") {
  static std::atomic<bool> answered, closed;
  for (const bool dropped : {false, true}) {
    answered = closed = false;
    test_point_hook = [](const char* name) {
      if (std::string(name) != "p2p.done") return;
      answered = true;
      while (!closed) std::this_thread::yield();
    };
    test::on_ranks(
        2, test::local_config(true),
        [&](Communicator& comm, const std::shared_ptr<Communicator>& shared) {
          constexpr uint64_t bytes = 100'000;
          std::vector<std::byte> array(bytes);
          std::optional<PointToPoint> p2p(shared);
          barrier(comm);
          if (comm.rank() == 0) {
            std::optional<Memory> memory(std::in_place, *p2p, bytes, true);
            fill(memory->get(), bytes, 1);
            p2p->wait(*p2p->isend(memory->get(), bytes, 1, 3));  // read by rank 1, not streamed to it
            CHECK(answered);
            const auto request = p2p->isend(memory->get(), bytes, 1, 4);
            if (!dropped) {
              interrupt_check = [] { throw Error(Status::Failure, "Ctrl-C"); };  // rank 1 does not come
              CHECK_THROWS(p2p->close(), Status::Failure);
              interrupt_check = nullptr;
            }
            p2p.reset();
            CHECK_THROWS(request->error ? throw *request->error : 0, Status::Closed);
            std::memset(memory->get(), 0, bytes);
            memory.reset();
            comm.close();
            closed = true;
            return;
          }
          const MessageInfo info = p2p->recv(array.data(), bytes, 0, 3);
          CHECK(info.bytes == bytes && is_filled(array.data(), bytes, 1));
          CHECK_THROWS(p2p->recv(array.data(), bytes, 0, 4), Status::Closed);
          p2p->close();
        },
        PointToPoint::annex_bytes);
    test_point_hook = nullptr;
  }
}

TEST_MAIN()
