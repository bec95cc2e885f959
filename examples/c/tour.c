/* The least that shows everything: two or more ranks pass a number around a ring, then send their tokens to experts and
 * bring the results back. Start it with `xccl run -n 3 ./tour`, or as README.md says. */
#include <stdio.h>
#include <stdlib.h>
#include <xccl.h>

static void must(xccl_status status) {
  if (status == XCCL_OK) return;
  fprintf(stderr, "%s: %s\n", xccl_status_name(status), xccl_error_message());
  exit(1); /* the other ranks see that this one is gone */
}

/* Every rank gets the number of the rank before it. */
static int pass_around(xccl_comm* comm, int rank, int size) {
  int from_left = -1;
  xccl_request* request;
  must(xccl_comm_irecv(comm, (rank + size - 1) % size, 7, &from_left, sizeof from_left, &request));
  must(xccl_comm_send(comm, &rank, sizeof rank, (rank + 1) % size, 7, XCCL_DEFAULT_TIMEOUT));
  must(xccl_request_wait(request, XCCL_DEFAULT_TIMEOUT, NULL));
  xccl_request_destroy(request);
  return from_left;
}

/* One token of four numbers, to experts 0 and 3 of four; expert e multiplies by 1 + e. */
static float through_experts(xccl_comm* comm, int rank) {
  const float x[4] = {(float)rank, 1, 2, 3}, weights[2] = {0.5f, 0.25f};
  const int32_t experts[2] = {0, 3};
  float y[4];
  xccl_ep_config config;
  xccl_ep* ep;
  xccl_result* result;
  xccl_ep_config_init(&config, sizeof config);
  config.num_experts = 4, config.hidden = 4, config.max_tokens = 1, config.topk = 2,
  config.dtype = XCCL_FLOAT32;
  must(xccl_ep_create(comm, &config, XCCL_DEFAULT_TIMEOUT, &ep));
  must(xccl_ep_dispatch(ep, x, 1, experts, XCCL_INT32, weights, XCCL_DEFAULT_TIMEOUT, &result));
  size_t local, i;
  int64_t row = 0, n;
  float* rows = (float*)xccl_result_x(result);
  const int* ids = xccl_ep_local_experts(ep, &local);
  for (i = 0; i < local; ++i)
    for (n = 4 * xccl_result_counts(result)[i]; n > 0; --n) rows[row++] *= (float)(1 + ids[i]);
  must(xccl_ep_combine(ep, rows, result, NULL, XCCL_DEFAULT_TIMEOUT, y));
  xccl_result_destroy(result);
  xccl_ep_destroy(ep);
  return y[3];
}

int main(void) {
  xccl_comm* comm;
  must(xccl_comm_create(NULL, &comm));
  const int rank = xccl_comm_rank(comm), size = xccl_comm_size(comm);
  const int from_left = pass_around(comm, rank, size);
  const float y = through_experts(comm, rank); /* 0.5 * 1 * 3 + 0.25 * 4 * 3 */
  printf("rank %d of %d: %d came around, y = %g, right: %s\n", rank, size, from_left, y,
         from_left == (rank + size - 1) % size && y == 4.5f ? "yes" : "no");
  xccl_comm_destroy(comm);
  return 0;
}
