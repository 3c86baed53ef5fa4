// The rules of attn_exec.
#include "problem/resources.h"

#include "problem/growable_struct.h"

namespace attn {

Resources read_resources(const TensorReader& reader, const attn_exec* given, void* workspace,
                         size_t workspace_bytes) {
  reader.check_workspace(workspace, workspace_bytes);
  Resources resources{
      .device = reader.device(), .workspace = workspace, .workspace_bytes = workspace_bytes};
  attn_exec& exec = resources.exec;
  if (given) exec = read_growable("exec", given, exec);
  if (exec.num_threads < 0) {
    refuse_argument("expected exec's num_threads >= 0, got %d; pass 0 for the default",
                    exec.num_threads);
  }
  if (exec.reserved != 0) {
    refuse_argument("expected exec's reserved to be 0, got %d; initialise with ATTN_EXEC_INIT",
                    exec.reserved);
  }
  return resources;
}

}  // namespace attn
