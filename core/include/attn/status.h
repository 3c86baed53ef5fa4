/* Status codes and the caller-owned error message of every fallible attn_* function. */
#ifndef ATTN_STATUS_H
#define ATTN_STATUS_H

#include <stdint.h>

#if defined(_WIN32)
#define ATTN_API __declspec(dllimport)
#elif defined(__GNUC__)
#define ATTN_API __attribute__((visibility("default")))
#else
#define ATTN_API
#endif

#ifdef __cplusplus
#define ATTN_NOEXCEPT noexcept
#else
#define ATTN_NOEXCEPT
#endif

typedef int32_t attn_status;

#define ATTN_OK 0                     /* The call did what it says; outputs are written. */
#define ATTN_ERROR_INVALID_ARGUMENT 1 /* An argument breaks the contract; nothing was written. */
#define ATTN_ERROR_UNSUPPORTED 2      /* Valid, but no kernel does it yet; nothing was written. */
#define ATTN_ERROR_OUT_OF_MEMORY 3    /* The host could not allocate; outputs are undefined. */
#define ATTN_ERROR_DEVICE 4           /* The device or its driver failed; outputs are undefined. */
#define ATTN_ERROR_INTERNAL 5         /* A defect of this library; please report it. */

/* Receives the reason of a failure as "who: expected, got, what to do", NUL-terminated.
   Owned by the caller; every function accepts NULL in its place; untouched on ATTN_OK. */
typedef struct attn_error {
  char message[512];
} attn_error;

#endif /* ATTN_STATUS_H */
