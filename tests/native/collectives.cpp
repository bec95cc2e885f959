// The collectives on ranks that are threads, with addresses and without, with slow ranks: against obvious results.
#include <atomic>
#include <cstring>
#include <random>

#include "base/test_point.hpp"
#include "check.hpp"
#include "collective/all_gather.hpp"
#include "collective/all_reduce.hpp"
#include "collective/all_to_all.hpp"
#include "collective/barrier.hpp"
#include "collective/broadcast.hpp"
#include "collective/reduce_scatter.hpp"
#include "collective/split.hpp"

using namespace xccl;

namespace {

struct refusal {};

// Any rank may be late at any step.
struct Delays {
  Delays() {
    test_point_hook = [](const char*) {
      thread_local std::mt19937 random(std::random_device{}());
      if (random() % 60 == 0) std::this_thread::sleep_for(std::chrono::microseconds(500));
    };
  }
  ~Delays() { test_point_hook = nullptr; }
};

template <class Body>
void on_all(std::initializer_list<int> sizes, Body body) {
  for (const bool direct : {true, false})
    for (const int size : sizes)
      test::on_ranks(size, test::local_config(direct), [&](Communicator& comm, const auto&) { body(comm); });
}

// What `from` gives `to` in the call of this number: a piece of a long row of bytes without a pattern.
std::string bytes_of(int from, int to, uint64_t number, uint64_t length) {
  static const std::string row = [] {
    std::mt19937 random(5);
    std::string out(65'537, '\0');
    for (char& byte : out) byte = static_cast<char>(random());
    return out;
  }();
  std::string out;
  uint64_t at =
      (static_cast<uint64_t>(from) * 1009 + static_cast<uint64_t>(to) * 113 + number * 17) % row.size();
  for (; out.size() < length; at = 0) out.append(row, at, length - out.size());
  return out;
}

// Around what rides in a record, around cache lines, around pages; and more than a round takes.
constexpr uint64_t lengths[] = {0, 1, 23, 24, 25, 63, 64, 65, 1000, 4096, 70'001};
constexpr uint64_t several_rounds = most_scratch_round_bytes + 100'001;

// Sums of these depend on their order.
float value_of(int rank, uint64_t i) {
  const auto number = static_cast<int>((i * 7919 + static_cast<uint64_t>(rank) * 104729) % 2001) - 1000;
  return static_cast<float>(number) / (3.0f + static_cast<float>(i % 7));
}

// Sums of all ranks in rank order.
std::vector<float> sums(int size, uint64_t count) {
  std::vector<float> out(count);
  for (uint64_t i = 0; i < count; ++i) {
    out[i] = value_of(0, i);
    for (int rank = 1; rank < size; ++rank) out[i] += value_of(rank, i);
  }
  return out;
}

std::vector<float> values(int rank, uint64_t count) {
  std::vector<float> out(count);
  for (uint64_t i = 0; i < count; ++i) out[i] = value_of(rank, i);
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

}  // namespace

TEST("all_to_all gives everybody what was meant for it, for any size, again and again") {
  const Delays delays;
  on_all({1, 2, 3, 5, 8}, [](Communicator& comm) {
    const auto size = static_cast<uint64_t>(comm.size());
    uint64_t number = 0;
    for (int repeat = 0; repeat < 2; ++repeat)
      for (const uint64_t length : lengths) {
        std::string mine, expected, all(size * length, '?');
        for (int other = 0; other < comm.size(); ++other) {
          mine += bytes_of(comm.rank(), other, number, length);
          expected += bytes_of(other, comm.rank(), number, length);
        }
        all_to_all(comm, mine.data(), all.data(), length);
        CHECK(all == expected);
        ++number;
      }
  });
}

TEST("what does not fit in a round goes in several") {
  const Delays delays;
  on_all({2, 3}, [](Communicator& comm) {
    const auto size = static_cast<uint64_t>(comm.size());
    const uint64_t each = several_rounds / (size - 1);
    std::string mine, expected, all(size * each, '?');
    for (int other = 0; other < comm.size(); ++other) {
      mine += bytes_of(comm.rank(), other, 1, each);
      expected += bytes_of(other, comm.rank(), 1, each);
    }
    all_to_all(comm, mine.data(), all.data(), each);
    CHECK(all == expected);

    std::string gathered(size * several_rounds, '?'), shares;
    const std::string share = bytes_of(comm.rank(), 0, 2, several_rounds);
    all_gather(comm, share.data(), gathered.data(), several_rounds);
    for (int other = 0; other < comm.size(); ++other) shares += bytes_of(other, 0, 2, several_rounds);
    CHECK(gathered == shares);

    for (int root = 0; root < comm.size(); ++root) {
      std::string data =
          comm.rank() == root ? bytes_of(root, 7, 3, several_rounds) : std::string(several_rounds, '?');
      broadcast(comm, data.data(), several_rounds, root);
      CHECK(data == bytes_of(root, 7, 3, several_rounds));
    }

    // With three ranks the work is shared, and a chunk is what fits in three shares of half a round.
    const uint64_t count = (size == 2 ? several_rounds : 3 * most_scratch_round_bytes / 2 + 4444) / 4;
    std::vector<float> data = values(comm.rank(), count);
    all_reduce(comm, data.data(), data.data(), count, ElementType::float32, ReduceOp::sum);
    CHECK(same_bits(data, sums(comm.size(), count)));
  });
}

TEST("what lies in the application area is lent, by all or by some, and is free again on return") {
  const Delays delays;
  constexpr uint64_t each = 300'001;
  on_all({2, 3}, [](Communicator& comm) {
    const auto size = static_cast<uint64_t>(comm.size());
    std::byte* const area = comm.world().heap().allocate(size * each);
    std::string own(size * each, '?'), all(size * each, '?');
    for (const int lenders : {comm.size(), 1}) {
      char* const mine = comm.rank() < lenders ? reinterpret_cast<char*>(area) : own.data();
      for (uint64_t number = 0; number < 2; ++number) {
        std::string expected;
        for (int other = 0; other < comm.size(); ++other) {
          bytes_of(comm.rank(), other, number, each).copy(mine + static_cast<uint64_t>(other) * each, each);
          expected += bytes_of(other, comm.rank(), number, each);
        }
        all_to_all(comm, mine, all.data(), each);
        std::memset(mine, '!', size * each);
        CHECK(all == expected);

        bytes_of(comm.rank(), 9, number, each).copy(mine, each);
        expected.clear();
        for (int other = 0; other < comm.size(); ++other) expected += bytes_of(other, 9, number, each);
        all_gather(comm, mine, all.data(), each);
        std::memset(mine, '!', each);
        CHECK(all == expected);

        if (comm.rank() == 0) bytes_of(0, 7, number, each).copy(mine, each);
        broadcast(comm, mine, each, 0);
        CHECK(std::string(mine, each) == bytes_of(0, 7, number, each));
        std::memset(mine, '!', each);
      }
    }
    comm.world().heap().free(area);
  });
}

TEST("broadcast gives everybody the root's bytes, whoever is the root") {
  const Delays delays;
  on_all({1, 2, 3, 5}, [](Communicator& comm) {
    uint64_t number = 0;
    for (const uint64_t length : lengths)
      for (int root = 0; root < comm.size(); ++root) {
        const std::string expected = bytes_of(root, 0, ++number, length);
        std::string data = comm.rank() == root ? expected : std::string(length, '?');
        broadcast(comm, data.data(), length, root);
        CHECK(data == expected);
      }
    char byte = 0;
    CHECK_THROWS(broadcast(comm, &byte, 1, comm.size()), Status::InvalidArgument);
    CHECK_THROWS(broadcast(comm, &byte, 1, -1), Status::InvalidArgument);
  });
}

TEST("rows of unequal counts come in rank order, with their counts") {
  const Delays delays;
  on_all({1, 2, 3, 5, 8}, [](Communicator& comm) {
    const auto size = static_cast<size_t>(comm.size());
    const auto rank = static_cast<size_t>(comm.rank());
    // Row `row_bytes`; counts with zeros, few and many; now and then more than a round takes.
    std::mt19937 random(7);
    for (int number = 0; number < 12; ++number) {
      const uint64_t row_bytes = std::vector<uint64_t>{8, 1, 0, 100, 4096}[static_cast<size_t>(number) % 5];
      std::vector<std::vector<uint64_t>> counts(size, std::vector<uint64_t>(size));
      for (auto& row : counts)
        for (auto& count : row) {
          const auto kind = random() % 4;
          count = kind == 0 ? 0 : kind == 1 ? random() % 4 : kind == 2 ? random() % 40 : random() % 300;
        }
      if (number == 9 && size <= 3) counts[0][size - 1] = most_scratch_round_bytes / 4096 + 77;
      std::string rows, expected, got;
      std::vector<uint64_t> expected_counts, got_counts(size, 99);
      for (size_t other = 0; other < size; ++other) {
        rows += bytes_of(comm.rank(), static_cast<int>(other), 0, counts[rank][other] * row_bytes);
        expected += bytes_of(static_cast<int>(other), comm.rank(), 0, counts[other][rank] * row_bytes);
        expected_counts.push_back(counts[other][rank]);
      }
      const Room room{[&](uint64_t come) {
        CHECK(got_counts == expected_counts);
        got.assign(come * row_bytes, '?');
        return got.data();
      }};
      all_to_all_v(comm, rows.data(), counts[rank].data(), row_bytes, room, got_counts.data());
      CHECK(got == expected);

      expected.clear();
      expected_counts.clear();
      got_counts.assign(size, 99);
      for (size_t other = 0; other < size; ++other) {
        expected += bytes_of(static_cast<int>(other), 5, 1, counts[other][0] * row_bytes);
        expected_counts.push_back(counts[other][0]);
      }
      rows = bytes_of(comm.rank(), 5, 1, counts[rank][0] * row_bytes);
      all_gather_v(comm, rows.data(), counts[rank][0], row_bytes, room, got_counts.data());
      CHECK(got == expected);
    }
  });
}

TEST(
    "who has no room for what comes is told both sizes; the others get theirs, and the communicator stays "
    "usable") {
  on_all({3}, [](Communicator& comm) {
    const std::vector<uint64_t> counts = {10, 20, 30};
    const std::string rows(60, static_cast<char>('a' + comm.rank()));
    for (int repeat = 0; repeat < 6; ++repeat) {
      std::string out(90, '?');
      std::vector<uint64_t> got(3);
      const auto call = [&](uint64_t room) {
        all_to_all_v(comm, rows.data(), counts.data(), 1, room_in(out.data(), room), got.data());
      };
      if (comm.rank() == repeat % 3) {
        const uint64_t come = 3 * counts[static_cast<size_t>(comm.rank())];
        const Error error = CHECK_THROWS(call(come - 1), Status::Truncated);
        CHECK(error.message.find(std::to_string(come - 1)) != std::string::npos);
        CHECK(error.message.find(std::to_string(come) + " have come") != std::string::npos);
        CHECK(out == std::string(90, '?'));
      } else {
        call(90);
        const uint64_t each = counts[static_cast<size_t>(comm.rank())];
        CHECK(out.substr(0, 3 * each) ==
              std::string(each, 'a') + std::string(each, 'b') + std::string(each, 'c'));
      }
      CHECK(got == std::vector<uint64_t>(3, counts[static_cast<size_t>(comm.rank())]));
      // Whatever the room throws comes out, at the end.
      try {
        all_gather_v(comm, rows.data(), 60, 1, {[](uint64_t) -> void* { throw refusal(); }}, got.data());
        CHECK(false);
      } catch (const refusal&) {
      }
    }
  });
}

TEST(
    "all_reduce and reduce_scatter add in rank order, with the same bits on all ranks and by both "
    "algorithms") {
  const Delays delays;
  on_all({1, 2, 3, 5, 8}, [](Communicator& comm) {
    const auto size = static_cast<uint64_t>(comm.size());
    for (const uint64_t count : {uint64_t{0}, uint64_t{1}, uint64_t{6}, uint64_t{7}, uint64_t{1000},
                                 uint64_t{2048}, uint64_t{2049}, uint64_t{17'001}, uint64_t{40'000}}) {
      const std::vector<float> in = values(comm.rank(), count), expected = sums(comm.size(), count);
      std::vector<float> out(count, -1.0f);
      all_reduce(comm, in.data(), out.data(), count, ElementType::float32, ReduceOp::sum);
      CHECK(same_bits(out, expected));

      // The same sums, cut into blocks: of one size, and of several.
      const uint64_t each = count / size;
      std::vector<float> block(each, -1.0f);
      reduce_scatter(comm, in.data(), block.data(), each, ElementType::float32, ReduceOp::sum);
      const auto from = expected.begin() + static_cast<long>(each * static_cast<uint64_t>(comm.rank()));
      CHECK(same_bits(block, {from, from + static_cast<long>(each)}));

      std::vector<uint64_t> counts(size), firsts(size);
      uint64_t left = count;
      for (uint64_t r = 0; r < size; ++r) {
        firsts[r] = count - left;
        counts[r] = r + 1 == size ? left : r % 2 ? 0 : left / 2;
        left -= counts[r];
      }
      const uint64_t own = counts[static_cast<size_t>(comm.rank())];
      const auto begin = expected.begin() + static_cast<long>(firsts[static_cast<size_t>(comm.rank())]);
      std::vector<float> part(own, -1.0f);
      reduce_scatter_v(comm, in.data(), part.data(), counts.data(), 1, ElementType::float32, ReduceOp::sum);
      CHECK(same_bits(part, {begin, begin + static_cast<long>(own)}));
    }
    const int64_t high = INT64_MAX - comm.rank();
    int64_t wrapped = 0, largest = 0;
    all_reduce(comm, &high, &wrapped, 1, ElementType::int64, ReduceOp::sum);
    uint64_t expected = 0;
    for (uint64_t r = 0; r < size; ++r) expected += static_cast<uint64_t>(INT64_MAX) - r;
    CHECK(static_cast<uint64_t>(wrapped) == expected);
    all_reduce(comm, &high, &largest, 1, ElementType::int64, ReduceOp::max);
    CHECK(largest == INT64_MAX);
  });
}

TEST("ranks that call different things are told, on every side, what differs and who") {
  struct Case {
    std::function<void(Communicator&)> usual, odd;
    const char* names[2];  // what stands in the message of either side
  };
  const auto reduce = [](ElementType type, ReduceOp op, uint64_t count) {
    return [=](Communicator& comm) {
      std::byte in[64] = {}, out[64];
      all_reduce(comm, in, out, count, type, op);
    };
  };
  const auto scatter_v = [](std::vector<uint64_t> list, uint64_t row) {
    return [=](Communicator& comm) {
      float in[32] = {}, out[32];
      reduce_scatter_v(comm, in, out, list.data(), row, ElementType::float32, ReduceOp::sum);
    };
  };
  const auto gather = [](uint64_t bytes) {
    return [=](Communicator& comm) {
      std::byte in[64] = {}, all[192];
      all_gather(comm, in, all, bytes);
    };
  };
  const auto cast = [](int root, uint64_t bytes) {
    return [=](Communicator& comm) {
      std::byte data[64] = {};
      broadcast(comm, data, bytes, root);
    };
  };
  const auto rows = [](uint64_t row_bytes) {
    return [=](Communicator& comm) {
      std::byte in[64] = {}, out[192];
      const std::vector<uint64_t> send(3, 1);
      std::vector<uint64_t> come(3);
      all_to_all_v(comm, in, send.data(), row_bytes, room_in(out, 192), come.data());
    };
  };
  const Case cases[] = {
      {gather(8), gather(16), {"8 bytes", "16 bytes"}},
      {gather(8), cast(0, 8), {"all_gather", "broadcast"}},
      {cast(0, 8), cast(1, 8), {"root: ", " has 1"}},
      {cast(0, 8), cast(0, 9), {"8 bytes", "9 bytes"}},
      {reduce(ElementType::float32, ReduceOp::sum, 4),
       reduce(ElementType::bfloat16, ReduceOp::sum, 4),
       {"float32", "bfloat16"}},
      {reduce(ElementType::float32, ReduceOp::sum, 4),
       reduce(ElementType::float32, ReduceOp::max, 4),
       {"sum", "max"}},
      {reduce(ElementType::float32, ReduceOp::sum, 4),
       reduce(ElementType::float32, ReduceOp::sum, 5),
       {"4 elements", "5"}},
      {rows(8), rows(4), {"8 bytes per row", "4"}},
      {scatter_v({1, 2, 3}, 1), scatter_v({1, 3, 2}, 1), {"counts[1]: ", " has 3"}},
      {scatter_v({1, 2, 3}, 5), scatter_v({1, 3, 2}, 5), {"counts[1]: ", " has 3"}},
      {scatter_v({1, 2, 3}, 0), scatter_v({1, 2, 4}, 0), {"counts[2]: ", " has 4"}},
      {scatter_v({2, 2, 2}, 2), scatter_v({4, 4, 4}, 1), {"elements of a row: ", " has 1"}},
  };
  for (const Case& one : cases)
    for (const bool direct : {true, false})
      for (int odd = 0; odd < 3; ++odd)
        test::on_ranks(3, test::local_config(direct), [&](Communicator& comm, const auto&) {
          const Error error =
              CHECK_THROWS(comm.rank() == odd ? one.odd(comm) : one.usual(comm), Status::Mismatch);
          std::vector<int> others;
          for (int rank = 0; rank < 3; ++rank)
            if (rank != odd) others.push_back(rank);
          CHECK(error.ranks == (comm.rank() == odd ? others : std::vector<int>{odd}));
          for (const char* name : one.names) CHECK(error.message.find(name) != std::string::npos);
          CHECK(error.message.find("rank " + std::to_string(comm.rank()) + " ") != std::string::npos);
          CHECK_THROWS(one.usual(comm), Status::Mismatch);  // the first cause, again
        });
}

TEST("a record that cannot be is reported with the number that its writer has in the job") {
  test::on_ranks(2, test::local_config(true), [](Communicator& comm, const auto& whole) {
    const auto sub = split(whole, 0, -comm.rank());  // the other way round
    if (comm.rank() == 1) {
      const ExchangeCall call{Collective::all_gather_v};
      sub->board().post(1, sub->collective_seq() + 1, {call.packed(), 8, UINT64_MAX, 1, 0, 0, 0});
    } else {
      uint64_t row = 0, rows[2], counts[2];
      const Error error =
          CHECK_THROWS(all_gather_v(*sub, &row, 1, 8, room_in(rows, 2), counts), Status::Failure);
      CHECK(error.message.find("rank 1 announces 18446744073709551615 rows") != std::string::npos);
    }
    sub->close();
  });
}

TEST("a record that names memory outside its writer's region, or no rounds, is refused") {
  const ExchangeCall fixed{Collective::all_gather}, variable{Collective::all_gather_v};
  const std::pair<Payload, const char*> damaged[] = {
      {{fixed.packed(), 1000, 0, 1, uint64_t{1} << 60, 0, 0}, "rank 1 names memory outside its region"},
      {{fixed.packed(), 1000, 0, 1, UINT64_MAX >> 1, 0, 0}, "rank 1 names memory outside its region"},
      {{variable.packed(), 8, 1, 0, 0, 0, 0}, "rank 1 announces 0 rounds"}};
  for (const bool direct : {true, false})
    for (const auto& [record, says] : damaged)
      test::on_ranks(2, test::local_config(direct), [&](Communicator& comm, const auto& whole) {
        const auto sub = split(whole, 0, 0);
        if (comm.rank() == 1) {
          sub->board().post(0, sub->collective_seq() + 1, record);
          barrier(comm);
          return sub->close();
        }
        uint64_t row = 0, counts[2];
        std::vector<std::byte> mine(1000), all(2000);
        const Error error = CHECK_THROWS(
            record[0] == fixed.packed() ? all_gather(*sub, mine.data(), all.data(), 1000)
                                        : all_gather_v(*sub, &row, 1, 8, room_in(all.data(), 250), counts),
            Status::Failure);
        CHECK(error.message.find(says) != std::string::npos);
        barrier(comm);
        sub->close();
      });
}

TEST("a call that ends by an error writes nothing any more") {
  for (const bool direct : {true, false})
    test::on_ranks(3, test::local_config(direct), [](Communicator& comm, const auto& whole) {
      const auto sub = split(whole, 0, 0);
      // Rank 0 pulls from rank 1 before it sees that rank 2 disagrees.
      const std::string mine(1000, 'm');
      std::string all(3000, '?');
      CHECK_THROWS(all_gather(*sub, mine.data(), all.data(), comm.rank() == 2 ? 500 : 1000),
                   Status::Mismatch);
      all.assign(3000, '?');
      barrier(comm);  // what is postponed happens now at the latest
      CHECK(all == std::string(3000, '?'));
      sub->close();
    });
}

TEST("collectives of every kind follow each other without a barrier") {
  const Delays delays;
  on_all({2, 4}, [](Communicator& comm) {
    const auto size = static_cast<uint64_t>(comm.size());
    std::mt19937 random(11);  // the same on all ranks
    for (uint64_t number = 0; number < 80; ++number) {
      const uint64_t length = random() % 3 == 0 ? random() % 30'000 : random() % 100;
      const int root = static_cast<int>(random() % size);
      switch (random() % 4) {
        case 0: {
          std::string all(size * length, '?'), expected;
          const std::string mine = bytes_of(comm.rank(), 0, number, length);
          all_gather(comm, mine.data(), all.data(), length);
          for (int other = 0; other < comm.size(); ++other) expected += bytes_of(other, 0, number, length);
          CHECK(all == expected);
          break;
        }
        case 1: {
          std::string mine, expected, all(size * length, '?');
          for (int other = 0; other < comm.size(); ++other) {
            mine += bytes_of(comm.rank(), other, number, length);
            expected += bytes_of(other, comm.rank(), number, length);
          }
          all_to_all(comm, mine.data(), all.data(), length);
          CHECK(all == expected);
          break;
        }
        case 2: {
          std::string data = bytes_of(comm.rank(), 0, number, length);
          broadcast(comm, data.data(), length, root);
          CHECK(data == bytes_of(root, 0, number, length));
          break;
        }
        case 3: {
          std::vector<float> data = values(comm.rank(), length);
          all_reduce(comm, data.data(), data.data(), length, ElementType::float32, ReduceOp::sum);
          CHECK(same_bits(data, sums(comm.size(), length)));
          break;
        }
      }
    }
  });
}

TEST_MAIN()
