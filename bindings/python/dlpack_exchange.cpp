// Finds a type's DLPack C exchange table once, and remembers the answer.
#include "dlpack_exchange.h"

#include <unordered_map>

namespace attn::python {
namespace nb = nanobind;

namespace {

constexpr uint32_t kMajorVersion = 1;

const DlpackExchange* look_up(nb::handle type) {
  nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  void* table = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  auto header = static_cast<const DlpackExchange::Header*>(table);
  while (header != nullptr && header->major != kMajorVersion) header = header->previous;
  return reinterpret_cast<const DlpackExchange*>(header);
}

}  // namespace

const DlpackExchange* find_dlpack_exchange(nb::handle object) {
  // Never destroyed: it holds references to types, which outlive no interpreter.
  static auto& tables = *new std::unordered_map<PyObject*, const DlpackExchange*>();
  PyObject* type = object.type().ptr();
  auto known = tables.find(type);
  if (known != tables.end()) return known->second;
  const DlpackExchange* table = look_up(type);
  tables.emplace(nb::borrow(type).release().ptr(), table);
  return table;
}

}  // namespace attn::python
