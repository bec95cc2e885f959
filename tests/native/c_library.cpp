// What xccl.h says about threads, for ThreadSanitizer to see: ranks are threads, and what may be given back in any
// thread is given back in another one. Links the shared library. What the functions do: tests/test_c_library.py.
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "capi/xccl.h"
#include "check.hpp"

namespace {

void must(xccl_status status) {
  if (status != XCCL_OK) std::fprintf(stderr, "%s: %s\n", xccl_status_name(status), xccl_error_message());
  CHECK(status == XCCL_OK);
}

void elsewhere(const std::function<void()>& body) { std::thread(body).join(); }

void on_ranks(int size, const char* job, const std::function<void(xccl_comm*)>& body) {
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.emplace_back([=] {
      xccl_comm_config config;
      xccl_comm_config_init(&config, sizeof config);
      config.rank = rank;
      config.rank_count = size;
      config.job = job;
      config.provider = "local";
      xccl_comm* comm;
      must(xccl_comm_create(&config, &comm));
      body(comm);
      xccl_comm_destroy(comm);
    });
  for (std::thread& rank : ranks) rank.join();
}

}  // namespace

TEST("views are released and memory is freed in other threads") {
  on_ranks(2, "views", [](xccl_comm* comm) {
    constexpr uint64_t bytes = 100'000;
    const int peer = 1 - xccl_comm_rank(comm);
    for (int round = 0; round < 20; ++round) {
      void* memory;
      must(xccl_memory_alloc(comm, bytes, &memory));
      std::memset(memory, round, bytes);
      xccl_request* request;
      must(xccl_comm_isend(comm, memory, bytes, peer, round, &request));
      xccl_view* view;
      must(xccl_view_borrow(comm, peer, XCCL_ANY_TAG, XCCL_DEFAULT_TIMEOUT, &view));
      CHECK(xccl_view_message(view).bytes == bytes);
      std::thread reader([view, round] {
        const auto* data = static_cast<const unsigned char*>(xccl_view_data(view));
        CHECK(data[0] == round && data[bytes - 1] == round);
        xccl_view_release(view);
      });
      must(xccl_request_wait(request, XCCL_DEFAULT_TIMEOUT, nullptr));
      reader.join();
      xccl_request_destroy(request);
      elsewhere([&] { must(xccl_memory_free(comm, memory)); });
    }
    must(xccl_comm_barrier(comm, XCCL_DEFAULT_TIMEOUT));
  });
}

TEST("results are destroyed in other threads, while the next dispatch is under way") {
  on_ranks(3, "results", [](xccl_comm* comm) {
    xccl_ep_config config;
    xccl_ep_config_init(&config, sizeof config);
    config.num_experts = 5;
    config.hidden = 3;
    config.max_tokens = 1;
    config.topk = 1;
    config.results = 4;
    config.dtype = XCCL_FLOAT32;
    xccl_ep* ep;
    must(xccl_ep_create(comm, &config, XCCL_DEFAULT_TIMEOUT, &ep));
    std::thread last;
    for (int round = 0; round < 20; ++round) {
      const float x[3] = {1, 2, static_cast<float>(round)}, weight = 2;
      const int32_t expert = round % 5;
      float y[3];
      xccl_result* result;
      must(xccl_ep_dispatch(ep, x, 1, &expert, XCCL_INT32, &weight, XCCL_DEFAULT_TIMEOUT, &result));
      must(xccl_ep_combine(ep, xccl_result_x(result), result, nullptr, XCCL_DEFAULT_TIMEOUT, y));
      CHECK(y[2] == 2 * static_cast<float>(round));
      if (last.joinable()) last.join();
      last = std::thread([result] { xccl_result_destroy(result); });
    }
    last.join();
    xccl_ep_destroy(ep);
  });
}

TEST("a second thread is refused while one is inside, disturbs nothing, and has errors of its own") {
  std::atomic<bool> inside{false}, refused{false};  // what the threads of the two ranks tell each other
  on_ranks(2, "second", [&](xccl_comm* comm) {
    constexpr uint64_t bytes = 100'000;  // announced: a send waits for its receiver
    std::vector<unsigned char> array(bytes);
    xccl_message message;
    if (xccl_comm_rank(comm) == 1) {
      must(xccl_comm_probe(comm, 0, 1, XCCL_DEFAULT_TIMEOUT, &message));
      inside = true;
      while (!refused) std::this_thread::yield();
      must(xccl_comm_recv(comm, 0, 1, XCCL_DEFAULT_TIMEOUT, array.data(), bytes, &message));
      CHECK(message.bytes == bytes);
      return;
    }
    CHECK(xccl_comm_send(comm, nullptr, 0, 7, 1, XCCL_DEFAULT_TIMEOUT) == XCCL_INVALID_ARGUMENT);
    std::thread second([&] {
      while (!inside) std::this_thread::yield();
      for (int i = 0; i < 100; ++i) {
        CHECK(xccl_comm_iprobe(comm, 1, 2, &message) == XCCL_INVALID_ARGUMENT);
        CHECK(std::strstr(xccl_error_message(), "another thread"));
      }
      CHECK(xccl_comm_close(comm) == XCCL_INVALID_ARGUMENT);
      CHECK(!xccl_comm_is_closed(comm));
      refused = true;
    });
    must(xccl_comm_send(comm, array.data(), bytes, 1, 1, XCCL_DEFAULT_TIMEOUT));
    second.join();
    CHECK(!std::strstr(xccl_error_message(), "another thread"));
  });
}

int main() { return test::run_all(); }
