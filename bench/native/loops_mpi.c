// MPI's loops. mpi4py, in the same process, has called MPI_Init.
#include <mpi.h>

#include "loops.h"

#define TRY(call)                               \
  do {                                          \
    const int status_ = (call);                 \
    if (status_ != MPI_SUCCESS) return status_; \
  } while (0)

enum { DATA = 1, ANSWER = 2 };

static int my_rank(void) {
  int rank = -1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int loops_ping_pong(char* buffer, size_t bytes, int64_t rounds, struct span* taken) {
  const MPI_Comm all = MPI_COMM_WORLD;
  const int rank = my_rank(), other = 1 - rank, count = (int)bytes;
  TRY(MPI_Barrier(all));
  taken->start = now_ns();
  for (int64_t i = 0; i < rounds; ++i) {
    if (rank == 0) TRY(MPI_Send(buffer, count, MPI_BYTE, other, DATA, all));
    TRY(MPI_Recv(buffer, count, MPI_BYTE, other, DATA, all, MPI_STATUS_IGNORE));
    if (rank == 1) TRY(MPI_Send(buffer, count, MPI_BYTE, other, DATA, all));
  }
  taken->end = now_ns();
  return 0;
}

int loops_stream(char* buffer, size_t bytes, int window, int64_t rounds, struct span* taken) {
  const MPI_Comm all = MPI_COMM_WORLD;
  const int rank = my_rank(), other = 1 - rank, count = (int)bytes;
  MPI_Request requests[MOST_WINDOW];
  char answer = 0;
  TRY(MPI_Barrier(all));
  taken->start = now_ns();
  for (int64_t i = 0; i < rounds; ++i) {
    for (int w = 0; w < window; ++w) {
      if (rank == 0) TRY(MPI_Isend(buffer, count, MPI_BYTE, other, DATA, all, &requests[w]));
      if (rank == 1) TRY(MPI_Irecv(buffer, count, MPI_BYTE, other, DATA, all, &requests[w]));
    }
    TRY(MPI_Waitall(window, requests, MPI_STATUSES_IGNORE));
    if (rank == 0) TRY(MPI_Recv(&answer, 1, MPI_BYTE, other, ANSWER, all, MPI_STATUS_IGNORE));
    if (rank == 1) TRY(MPI_Send(&answer, 1, MPI_BYTE, other, ANSWER, all));
  }
  taken->end = now_ns();
  return 0;
}

int loops_all_to_all(const char* in, char* out, size_t bytes, int64_t rounds, struct span* taken) {
  const MPI_Comm all = MPI_COMM_WORLD;
  const int count = (int)bytes;
  TRY(MPI_Barrier(all));
  taken->start = now_ns();
  for (int64_t i = 0; i < rounds; ++i) TRY(MPI_Alltoall(in, count, MPI_BYTE, out, count, MPI_BYTE, all));
  taken->end = now_ns();
  return 0;
}
