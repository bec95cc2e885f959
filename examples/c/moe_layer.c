/* A mixture-of-experts layer: a router picks two of eight experts for every token, dispatch takes the tokens there, each
 * expert is a small network, combine brings back the weighted sum. The experts are spread over the ranks; every rank also
 * computes its own tokens with all experts by itself, and compares. Usage: moe_layer [TOKENS] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <xccl.h>

enum { EXPERTS = 8, TOPK = 2, HIDDEN = 16, MAX_TOKENS = 64, LAYERS = 3 };

static void must(xccl_status status) {
  if (status == XCCL_OK) return;
  fprintf(stderr, "%s: %s\n", xccl_status_name(status), xccl_error_message());
  exit(1);
}

/* A weight of the model: some number between -0.5 and 0.5 that depends on where it stands. */
static float weight(unsigned a, unsigned b, unsigned c) {
  const unsigned mixed = (a * 2654435761u ^ b * 2246822519u ^ c * 3266489917u) * 668265263u;
  return (float)(mixed >> 16) / 65536.0f - 0.5f;
}

/* One expert on one row: a matrix, and nothing below zero. */
static void expert(int which, const float* x, float* y) {
  int i, j;
  for (i = 0; i < HIDDEN; ++i) {
    float sum = 0;
    for (j = 0; j < HIDDEN; ++j) sum += weight((unsigned)which, (unsigned)i, (unsigned)j) * x[j];
    y[i] = sum > 0 ? sum : 0;
  }
}

/* The router: the TOPK experts with the highest scores, weighted by their softmax. */
static void route(const float* x, int64_t* experts, float* weights) {
  float scores[EXPERTS], total = 0;
  int e, j, k;
  for (e = 0; e < EXPERTS; ++e)
    for (scores[e] = 0, j = 0; j < HIDDEN; ++j) scores[e] += weight(99, (unsigned)e, (unsigned)j) * x[j];
  for (k = 0; k < TOPK; ++k) {
    int best = 0;
    for (e = 1; e < EXPERTS; ++e)
      if (scores[e] > scores[best]) best = e;
    experts[k] = best;
    total += weights[k] = expf(scores[best]);
    scores[best] = -INFINITY;
  }
  for (k = 0; k < TOPK; ++k) weights[k] /= total;
}

/* What the layer must give for one token, computed here. The same order of additions as combine's. */
static void alone(const float* x, const int64_t* experts, const float* weights, float* y) {
  float row[HIDDEN];
  int i, k;
  for (k = 0; k < TOPK; ++k) {
    expert((int)experts[k], x, row);
    for (i = 0; i < HIDDEN; ++i) y[i] = k ? y[i] + weights[k] * row[i] : weights[k] * row[i];
  }
}

/* One pass through the layer. Returns the largest difference from computing alone. */
static float layer(xccl_ep* ep, int rank, int pass, int64_t tokens) {
  static int64_t topk_experts[MAX_TOKENS * TOPK];
  static float topk_weights[MAX_TOKENS * TOPK], y[MAX_TOKENS * HIDDEN], expected[HIDDEN];
  const int* ids;
  const int64_t* counts;
  const float* from;
  float *x, *to, worst = 0;
  void* memory;
  xccl_result* result;
  size_t local, e;
  int64_t t, n;
  int i;

  /* Tokens are written where other ranks can fetch them, and the experts' results too: so nothing is copied first. */
  must(xccl_ep_input_buffer(ep, tokens, XCCL_DEFAULT_TIMEOUT, &memory));
  x = (float*)memory;
  for (t = 0; t < tokens; ++t) {
    for (i = 0; i < HIDDEN; ++i)
      x[t * HIDDEN + i] = weight((unsigned)(100 + pass), (unsigned)(rank * MAX_TOKENS + t), (unsigned)i);
    route(x + t * HIDDEN, topk_experts + t * TOPK, topk_weights + t * TOPK);
  }
  must(
      xccl_ep_dispatch(ep, x, tokens, topk_experts, XCCL_INT64, topk_weights, XCCL_DEFAULT_TIMEOUT, &result));
  must(xccl_result_output_buffer(result, XCCL_DEFAULT_TIMEOUT, &memory));
  from = (const float*)xccl_result_x(result);
  to = (float*)memory;
  ids = xccl_ep_local_experts(ep, &local);
  counts = xccl_result_counts(result);
  for (e = 0; e < local; ++e) /* rows lie expert by expert: one matrix product each, in a real model */
    for (n = 0; n < counts[e]; ++n, from += HIDDEN, to += HIDDEN) expert(ids[e], from, to);
  must(xccl_ep_combine(ep, memory, result, NULL, XCCL_DEFAULT_TIMEOUT, y));
  xccl_result_destroy(result);

  for (t = 0; t < tokens; ++t) {
    alone(x + t * HIDDEN, topk_experts + t * TOPK, topk_weights + t * TOPK, expected);
    for (i = 0; i < HIDDEN; ++i) worst = fmaxf(worst, fabsf(y[t * HIDDEN + i] - expected[i]));
  }
  return worst;
}

int main(int argc, char** argv) {
  const int64_t tokens = argc > 1 ? atoi(argv[1]) : 10;
  xccl_comm* comm;
  xccl_ep* ep;
  xccl_ep_config config;
  float worst = 0;
  int pass;
  must(xccl_comm_create(NULL, &comm));
  xccl_ep_config_init(&config, sizeof config);
  config.num_experts = EXPERTS;
  config.hidden = HIDDEN;
  config.max_tokens = MAX_TOKENS;
  config.topk = TOPK;
  config.dtype = XCCL_FLOAT32;
  must(xccl_ep_create(comm, &config, XCCL_DEFAULT_TIMEOUT, &ep));
  for (pass = 0; pass < LAYERS; ++pass) worst = fmaxf(worst, layer(ep, xccl_comm_rank(comm), pass, tokens));
  must(xccl_comm_all_reduce(comm, &worst, 1, XCCL_FLOAT32, XCCL_MAX, XCCL_DEFAULT_TIMEOUT, &worst));
  if (xccl_comm_rank(comm) == 0)
    printf("%d layers on %d ranks; the largest difference from one rank alone is %g, right: %s\n", LAYERS,
           xccl_comm_size(comm), worst, worst <= 1e-6f ? "yes" : "no");
  xccl_ep_destroy(ep);
  xccl_comm_destroy(comm);
  return 0;
}
