// DLPack's C exchange API: reads a tensor's description from its type's function table, ten times
// faster than by calling its __dlpack__.
//
// Source: dlpack.h 1.2, DLPackExchangeAPI. Only what a reader of borrowed tensors needs is named.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace attn::python {

struct DlpackExchange {
  struct Header {
    uint32_t major;
    uint32_t minor;
    const Header* previous;  // the same table for an older major version, or NULL
  };

  Header header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  // Fills in a view that lives as long as `object` is left alone; -1 with a Python exception set.
  int (*tensor_from_object)(void* object, nanobind::dlpack::dltensor* tensor);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** stream);
};

// Returns the table of `object`'s type, or NULL if that type has none. Needs the GIL.
const DlpackExchange* find_dlpack_exchange(nanobind::handle object);

}  // namespace attn::python
