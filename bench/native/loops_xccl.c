// XCCL's loops, on the C library. It is started here, since the process has not done so.
#include <xccl.h>

#include "loops.h"

#define TRY(call)                                \
  do {                                           \
    const xccl_status status_ = (call);          \
    if (status_ != XCCL_OK) return (int)status_; \
  } while (0)

enum { DATA = 1, ANSWER = 2 };

static xccl_comm* comm;

int loops_open(int rank, int size, const char* job) {
  xccl_comm_config config;
  xccl_comm_config_init(&config, sizeof config);
  config.rank = rank;
  config.rank_count = size;
  config.job = job;
  config.timeout = 100;
  return (int)xccl_comm_create(&config, &comm);
}

const char* loops_error(void) { return xccl_error_message(); }

void loops_close(void) { xccl_comm_destroy(comm); }

int loops_barrier(void) { return (int)xccl_comm_barrier(comm, XCCL_DEFAULT_TIMEOUT); }

void* loops_memory(size_t bytes) {
  void* memory = NULL;
  return xccl_memory_alloc(comm, bytes, &memory) == XCCL_OK ? memory : NULL;
}

int loops_ping_pong(char* buffer, size_t bytes, int64_t rounds, struct span* taken) {
  const int rank = xccl_comm_rank(comm), other = 1 - rank;
  TRY(xccl_comm_barrier(comm, XCCL_DEFAULT_TIMEOUT));
  taken->start = now_ns();
  for (int64_t i = 0; i < rounds; ++i) {
    if (rank == 0) TRY(xccl_comm_send(comm, buffer, bytes, other, DATA, XCCL_DEFAULT_TIMEOUT));
    TRY(xccl_comm_recv(comm, other, DATA, XCCL_DEFAULT_TIMEOUT, buffer, bytes, NULL));
    if (rank == 1) TRY(xccl_comm_send(comm, buffer, bytes, other, DATA, XCCL_DEFAULT_TIMEOUT));
  }
  taken->end = now_ns();
  return 0;
}

int loops_stream(char* buffer, size_t bytes, int window, int64_t rounds, struct span* taken) {
  const int rank = xccl_comm_rank(comm), other = 1 - rank;
  xccl_request* requests[MOST_WINDOW];
  char answer = 0;
  TRY(xccl_comm_barrier(comm, XCCL_DEFAULT_TIMEOUT));
  taken->start = now_ns();
  for (int64_t i = 0; i < rounds; ++i) {
    for (int w = 0; w < window; ++w) {
      if (rank == 0) TRY(xccl_comm_isend(comm, buffer, bytes, other, DATA, &requests[w]));
      if (rank == 1) TRY(xccl_comm_irecv(comm, other, DATA, buffer, bytes, &requests[w]));
    }
    for (int w = 0; w < window; ++w) {
      TRY(xccl_request_wait(requests[w], XCCL_DEFAULT_TIMEOUT, NULL));
      xccl_request_destroy(requests[w]);
    }
    if (rank == 0) TRY(xccl_comm_recv(comm, other, ANSWER, XCCL_DEFAULT_TIMEOUT, &answer, 1, NULL));
    if (rank == 1) TRY(xccl_comm_send(comm, &answer, 1, other, ANSWER, XCCL_DEFAULT_TIMEOUT));
  }
  taken->end = now_ns();
  return 0;
}

int loops_all_to_all(const char* in, char* out, size_t bytes, int64_t rounds, struct span* taken) {
  TRY(xccl_comm_barrier(comm, XCCL_DEFAULT_TIMEOUT));
  taken->start = now_ns();
  for (int64_t i = 0; i < rounds; ++i) TRY(xccl_comm_all_to_all(comm, in, bytes, XCCL_DEFAULT_TIMEOUT, out));
  taken->end = now_ns();
  return 0;
}
