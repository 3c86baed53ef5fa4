/* A borrowed n-dimensional array, with DLPack's numbers for device and dtype. */
#ifndef ATTN_TENSOR_H
#define ATTN_TENSOR_H

#include <stdint.h>

/* DLPack's DLDeviceType. */
#define ATTN_DEVICE_CPU 1
#define ATTN_DEVICE_CUDA 2

/* DLPack's DLDataTypeCode. */
#define ATTN_DTYPE_INT 0
#define ATTN_DTYPE_UINT 1
#define ATTN_DTYPE_FLOAT 2
#define ATTN_DTYPE_BFLOAT 4
#define ATTN_DTYPE_BOOL 6

/* An element type, laid out as DLPack's DLDataType: float32 is {ATTN_DTYPE_FLOAT, 32, 1}. */
typedef struct attn_dtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes; /* always 1 */
} attn_dtype;

/* This layout is frozen: it never grows, so it carries no struct_size. */
typedef struct attn_tensor {
  void* data;             /* first element; may be NULL only if some extent is 0 */
  const int64_t* shape;   /* [ndim] */
  const int64_t* strides; /* [ndim], in elements; 0 repeats, negative walks back */
  int32_t ndim;
  int32_t device_type; /* ATTN_DEVICE_* */
  int32_t device_id;   /* of the GPU; on the CPU it is not looked at */
  attn_dtype dtype;
} attn_tensor;

#endif /* ATTN_TENSOR_H */
