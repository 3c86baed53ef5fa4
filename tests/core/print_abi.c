/* Prints the layout of every public struct and the value of every public constant. */
#include <stdio.h>

#include "attn/attn.h"

#define STRUCT(type) printf("%s: %zu bytes\n", #type, sizeof(type))
#define FIELD(type, field) \
  printf("  %s: at %zu, %zu bytes\n", #field, offsetof(type, field), sizeof(((type*)0)->field))
#define CONSTANT(name) printf("%s = %lld\n", #name, (long long)(name))

static void print_operands(void) {
  STRUCT(attn_error);
  FIELD(attn_error, message);
  STRUCT(attn_dtype);
  FIELD(attn_dtype, code);
  FIELD(attn_dtype, bits);
  FIELD(attn_dtype, lanes);
  STRUCT(attn_tensor);
  FIELD(attn_tensor, data);
  FIELD(attn_tensor, shape);
  FIELD(attn_tensor, strides);
  FIELD(attn_tensor, ndim);
  FIELD(attn_tensor, device_type);
  FIELD(attn_tensor, device_id);
  FIELD(attn_tensor, dtype);
  STRUCT(attn_exec);
  FIELD(attn_exec, struct_size);
  FIELD(attn_exec, num_threads);
  FIELD(attn_exec, reserved);
  FIELD(attn_exec, parallel_for);
  FIELD(attn_exec, executor);
  FIELD(attn_exec, stream);
}

static void print_mask(void) {
  STRUCT(attn_mask);
  FIELD(attn_mask, struct_size);
  FIELD(attn_mask, band.left);
  FIELD(attn_mask, band.right);
  FIELD(attn_mask, band.anchor);
  FIELD(attn_mask, band.reserved);
  FIELD(attn_mask, bias);
  FIELD(attn_mask, dropout.p);
  FIELD(attn_mask, dropout.seed);
  FIELD(attn_mask, dropout.offset);
  FIELD(attn_mask, sequences.q_start);
  FIELD(attn_mask, sequences.k_start);
  FIELD(attn_mask, sequences.k_len);
  FIELD(attn_mask, sequences.max_q_len);
  FIELD(attn_mask, sequences.max_k_len);
  FIELD(attn_mask, pages.block_table);
  FIELD(attn_mask, pages.page_size);
  FIELD(attn_mask, blocks.offsets);
  FIELD(attn_mask, blocks.indices);
  FIELD(attn_mask, blocks.block_size);
  FIELD(attn_mask, relative.slopes);
  FIELD(attn_mask, relative.table);
  FIELD(attn_mask, positions.query);
  FIELD(attn_mask, positions.key_table);
  FIELD(attn_mask, positions.key);
  FIELD(attn_mask, positions.query_table);
  FIELD(attn_mask, positions.zero_row);
  FIELD(attn_mask, positions.key_table_rows);
  FIELD(attn_mask, positions.query_table_rows);
  FIELD(attn_mask, sink);
  FIELD(attn_mask, softcap);
}

static void print_forward(void) {
  STRUCT(attn_attention_forward_args);
  FIELD(attn_attention_forward_args, struct_size);
  FIELD(attn_attention_forward_args, query);
  FIELD(attn_attention_forward_args, key);
  FIELD(attn_attention_forward_args, value);
  FIELD(attn_attention_forward_args, mask);
  FIELD(attn_attention_forward_args, scale);
  FIELD(attn_attention_forward_args, out);
  FIELD(attn_attention_forward_args, lse);
  FIELD(attn_attention_forward_args, workspace);
  FIELD(attn_attention_forward_args, workspace_bytes);
  FIELD(attn_attention_forward_args, exec);
}

static void print_backward(void) {
  STRUCT(attn_attention_backward_args);
  FIELD(attn_attention_backward_args, struct_size);
  FIELD(attn_attention_backward_args, query);
  FIELD(attn_attention_backward_args, key);
  FIELD(attn_attention_backward_args, value);
  FIELD(attn_attention_backward_args, mask);
  FIELD(attn_attention_backward_args, scale);
  FIELD(attn_attention_backward_args, out);
  FIELD(attn_attention_backward_args, lse);
  FIELD(attn_attention_backward_args, grad_out);
  FIELD(attn_attention_backward_args, grad_lse);
  FIELD(attn_attention_backward_args, grad_query);
  FIELD(attn_attention_backward_args, grad_key);
  FIELD(attn_attention_backward_args, grad_value);
  FIELD(attn_attention_backward_args, grad_bias);
  FIELD(attn_attention_backward_args, grad_slopes);
  FIELD(attn_attention_backward_args, grad_table);
  FIELD(attn_attention_backward_args, grad_sink);
  FIELD(attn_attention_backward_args, grad_position_query);
  FIELD(attn_attention_backward_args, grad_key_table);
  FIELD(attn_attention_backward_args, grad_position_key);
  FIELD(attn_attention_backward_args, grad_query_table);
  FIELD(attn_attention_backward_args, workspace);
  FIELD(attn_attention_backward_args, workspace_bytes);
  FIELD(attn_attention_backward_args, exec);
}

static void print_merge(void) {
  STRUCT(attn_merge_forward_args);
  FIELD(attn_merge_forward_args, struct_size);
  FIELD(attn_merge_forward_args, num_chunks);
  FIELD(attn_merge_forward_args, chunk_outs);
  FIELD(attn_merge_forward_args, chunk_lses);
  FIELD(attn_merge_forward_args, out);
  FIELD(attn_merge_forward_args, lse);
  FIELD(attn_merge_forward_args, exec);
  STRUCT(attn_merge_backward_args);
  FIELD(attn_merge_backward_args, struct_size);
  FIELD(attn_merge_backward_args, num_chunks);
  FIELD(attn_merge_backward_args, chunk_outs);
  FIELD(attn_merge_backward_args, chunk_lses);
  FIELD(attn_merge_backward_args, grad_out);
  FIELD(attn_merge_backward_args, grad_lse);
  FIELD(attn_merge_backward_args, grad_chunk_outs);
  FIELD(attn_merge_backward_args, grad_chunk_lses);
  FIELD(attn_merge_backward_args, exec);
}

static void print_step(void) {
  STRUCT(attn_step_args);
  FIELD(attn_step_args, struct_size);
  FIELD(attn_step_args, query);
  FIELD(attn_step_args, key);
  FIELD(attn_step_args, value);
  FIELD(attn_step_args, key_ring);
  FIELD(attn_step_args, value_ring);
  FIELD(attn_step_args, query_ring);
  FIELD(attn_step_args, position);
  FIELD(attn_step_args, window);
  FIELD(attn_step_args, padding);
  FIELD(attn_step_args, padding_ring);
  FIELD(attn_step_args, active);
  FIELD(attn_step_args, bias);
  FIELD(attn_step_args, scale);
  FIELD(attn_step_args, out);
  FIELD(attn_step_args, lse);
  FIELD(attn_step_args, attending_query);
  FIELD(attn_step_args, workspace);
  FIELD(attn_step_args, workspace_bytes);
  FIELD(attn_step_args, exec);
}

static void print_linear(void) {
  STRUCT(attn_linear_args);
  FIELD(attn_linear_args, struct_size);
  FIELD(attn_linear_args, x);
  FIELD(attn_linear_args, weight);
  FIELD(attn_linear_args, bias);
  FIELD(attn_linear_args, out);
  FIELD(attn_linear_args, workspace);
  FIELD(attn_linear_args, workspace_bytes);
  FIELD(attn_linear_args, exec);
}

static void print_constants(void) {
  CONSTANT(ATTN_OK);
  CONSTANT(ATTN_ERROR_INVALID_ARGUMENT);
  CONSTANT(ATTN_ERROR_UNSUPPORTED);
  CONSTANT(ATTN_ERROR_OUT_OF_MEMORY);
  CONSTANT(ATTN_ERROR_DEVICE);
  CONSTANT(ATTN_ERROR_INTERNAL);
  CONSTANT(ATTN_DEVICE_CPU);
  CONSTANT(ATTN_DEVICE_CUDA);
  CONSTANT(ATTN_DTYPE_INT);
  CONSTANT(ATTN_DTYPE_UINT);
  CONSTANT(ATTN_DTYPE_FLOAT);
  CONSTANT(ATTN_DTYPE_BFLOAT);
  CONSTANT(ATTN_DTYPE_BOOL);
  CONSTANT(ATTN_UNBOUNDED);
  CONSTANT(ATTN_ANCHOR_TOP_LEFT);
  CONSTANT(ATTN_ANCHOR_BOTTOM_RIGHT);
}

int main(void) {
  print_operands();
  print_mask();
  print_forward();
  print_backward();
  print_merge();
  print_step();
  print_linear();
  print_constants();
  return 0;
}
