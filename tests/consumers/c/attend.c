/* A C11 program that uses the installed library: one query over two keys, checked by hand. */
#include <attn/attn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static attn_tensor float32_tensor(float* data, const int64_t* shape, const int64_t* strides,
                                  int32_t ndim) {
  const attn_tensor tensor = {
      data, shape, strides, ndim, ATTN_DEVICE_CPU, 0, {ATTN_DTYPE_FLOAT, 32, 1}};
  return tensor;
}

static int fail(const char* what) {
  fprintf(stderr, "%s\n", what);
  return EXIT_FAILURE;
}

int main(void) {
  /* Scores 1 and 0: the first key weighs e / (e + 1). */
  float query[] = {1, 0}, key[] = {1, 0, 0, 1}, value[] = {10, 20}, out[1], lse[1];
  const int64_t query_shape[] = {1, 1, 1, 2}, key_shape[] = {1, 2, 1, 2};
  const int64_t value_shape[] = {1, 2, 1, 1}, row_shape[] = {1, 1, 1, 1};
  const int64_t wide[] = {4, 2, 2, 1}, narrow[] = {2, 1, 1, 1};
  const attn_tensor q = float32_tensor(query, query_shape, wide, 4);
  const attn_tensor k = float32_tensor(key, key_shape, wide, 4);
  const attn_tensor v = float32_tensor(value, value_shape, narrow, 4);
  const attn_tensor o = float32_tensor(out, row_shape, narrow, 4);
  const attn_tensor l = float32_tensor(lse, row_shape, narrow, 3);

  attn_attention_forward_args args = ATTN_ATTENTION_FORWARD_INIT;
  args.query = &q;
  args.key = &k;
  args.value = &v;
  args.scale = 1.0;
  args.out = &o;
  args.lse = &l;

  attn_error error;
  if (attn_attention_forward_workspace(&args, &args.workspace_bytes, &error) != ATTN_OK) {
    return fail(error.message);
  }
  args.workspace = malloc(args.workspace_bytes);
  const attn_status status = attn_attention_forward(&args, &error);
  free(args.workspace);
  if (status != ATTN_OK) return fail(error.message);

  const double weight = exp(1.0) / (exp(1.0) + 1.0);
  if (fabs(out[0] - (10 * weight + 20 * (1 - weight))) > 1e-5) return fail("out is wrong");
  if (fabs(lse[0] - log(exp(1.0) + 1.0)) > 1e-6) return fail("lse is wrong");
  printf("attn %s: out %.6f, lse %.6f\n", attn_version(), out[0], lse[0]);
  return EXIT_SUCCESS;
}
