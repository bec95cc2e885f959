/* Ping-pong: ranks 0 and 1 send a message forth and back, once from memory of the program and once from memory that the
 * other rank reaches (xccl_memory_alloc), which saves a copy of large ones. Content is checked; times are what this
 * machine does today, no more. Other ranks wait at the barrier. Usage: ping_pong [ROUNDS] */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xccl.h>

enum { PING = 1, PONG = 2, LARGEST = 1 << 20 };

static void must(xccl_status status) {
  if (status == XCCL_OK) return;
  fprintf(stderr, "%s: %s\n", xccl_status_name(status), xccl_error_message());
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* One round: rank 0 begins, rank 1 answers with what it got. The round's number makes the bytes differ. */
static void play(xccl_comm* comm, int rank, unsigned char* buffer, uint64_t bytes, int round) {
  xccl_message got;
  if (rank == 0) {
    memset(buffer, round, bytes);
    must(xccl_comm_send(comm, buffer, bytes, 1, PING, XCCL_DEFAULT_TIMEOUT));
    memset(buffer, 0, bytes);
    must(xccl_comm_recv(comm, 1, PONG, XCCL_DEFAULT_TIMEOUT, buffer, bytes, &got));
    if (got.bytes != bytes || (bytes && (buffer[0] != round || buffer[bytes - 1] != round))) {
      must(xccl_comm_abort(comm, "ping_pong: the wrong bytes came back"));
      exit(1);
    }
  } else {
    must(xccl_comm_recv(comm, 0, PING, XCCL_DEFAULT_TIMEOUT, buffer, bytes, &got));
    must(xccl_comm_send(comm, buffer, got.bytes, 0, PONG, XCCL_DEFAULT_TIMEOUT));
  }
}

static void measure(xccl_comm* comm, int rank, unsigned char* buffer, const char* where, int rounds) {
  uint64_t bytes;
  for (bytes = 8; bytes <= LARGEST; bytes *= 16) {
    int round;
    double seconds;
    play(comm, rank, buffer, bytes, 1); /* takes memory, attaches */
    seconds = now();
    for (round = 0; round < rounds; ++round) play(comm, rank, buffer, bytes, round % 256);
    seconds = (now() - seconds) / rounds;
    if (rank == 0)
      printf("%8llu bytes of %s: %9.2f us forth and back\n", (unsigned long long)bytes, where, seconds * 1e6);
  }
}

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 1000;
  xccl_comm* comm;
  void *reachable, *own;
  int rank;
  must(xccl_comm_create(NULL, &comm));
  rank = xccl_comm_rank(comm);
  if (xccl_comm_size(comm) < 2 || rounds < 1) {
    fprintf(stderr, "ping_pong needs two ranks and at least one round: xccl run -n 2 ./ping_pong 1000\n");
    return 1;
  }
  if (rank < 2) {
    own = malloc(LARGEST);
    must(own ? XCCL_OK : XCCL_OUT_OF_MEMORY);
    must(xccl_memory_alloc(comm, LARGEST, &reachable));
    measure(comm, rank, (unsigned char*)own, "the program's memory", rounds);
    measure(comm, rank, (unsigned char*)reachable, "reachable memory", rounds);
    must(xccl_memory_free(comm, reachable));
    free(own);
  }
  must(xccl_comm_barrier(comm, XCCL_DEFAULT_TIMEOUT));
  if (rank == 0) printf("all bytes right\n");
  xccl_comm_destroy(comm);
  return 0;
}
