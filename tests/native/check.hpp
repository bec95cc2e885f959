// The little that native tests need: named tests, CHECK, ranks as threads. Included by the tests only.
// CHECK works in every build, unlike assert.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "group/communicator.hpp"

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

// The call must throw an xccl::Error of this status; gives the error back.
#define CHECK_THROWS(expression, expected)                                              \
  [&]() -> xccl::Error {                                                                \
    try {                                                                               \
      (void)(expression);                                                               \
    } catch (const xccl::Error& error) {                                                \
      if (error.status != (expected)) std::fprintf(stderr, "got: %s\n", error.what());  \
      CHECK(error.status == (expected));                                                \
      return error;                                                                     \
    }                                                                                   \
    std::fprintf(stderr, "%s:%d: %s did not throw\n", __FILE__, __LINE__, #expression); \
    std::abort();                                                                       \
  }()

namespace test {

struct Case {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, std::function<void()> body) { cases().push_back({name, std::move(body)}); }
};

#define TEST_JOIN2(a, b) a##b
#define TEST_JOIN(a, b) TEST_JOIN2(a, b)
#define TEST(name)                                                                                        \
  static void TEST_JOIN(test_body_, __LINE__)();                                                          \
  static const test::Register TEST_JOIN(test_register_, __LINE__)(name, TEST_JOIN(test_body_, __LINE__)); \
  static void TEST_JOIN(test_body_, __LINE__)()

inline int run_all() {
  for (const Case& one : cases()) {
    std::printf("%s\n", one.name.c_str());
    std::fflush(stdout);
    one.body();
  }
  std::printf("%zu passed\n", cases().size());
  return cases().empty();
}

inline xccl::Config local_config(bool direct) {
  xccl::Config config;
  config.provider = "local";
  config.direct = direct;
  config.timeout = 60;
  return config;
}

// Runs body(communicator) on `size` threads, each a rank of one local job. An exception that leaves a body fails the test.
inline void on_ranks(
    int size, const xccl::Config& config,
    const std::function<void(xccl::Communicator&, std::shared_ptr<xccl::Communicator>)>& body,
    xccl::Communicator::AnnexBytes annex = xccl::Communicator::no_annex) {
  static int jobs = 0;
  const std::string job = "test-" + std::to_string(++jobs);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.emplace_back([&, rank] {
      try {
        auto comm = xccl::Communicator::init({job, rank, size}, config, annex);
        body(*comm, comm);
        comm->close();
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        std::abort();
      }
    });
  for (auto& rank : ranks) rank.join();
}

}  // namespace test

#define TEST_MAIN() \
  int main() { return test::run_all(); }
