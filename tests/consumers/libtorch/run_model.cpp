// Runs one saved model on a fixed input and prints a number that stands for its output.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <cstdio>
#include <string>
#include <string_view>

namespace {

// [2, length, 3, 8], the same numbers as in test_libtorch.py.
at::Tensor make_input(int64_t length) {
  const auto count = at::arange(2 * length * 3 * 8, at::kDouble);
  return count.sin().to(at::kFloat).reshape({2, length, 3, 8});
}

// Differs if any two elements are exchanged.
double fingerprint(const at::Tensor& out) {
  const auto flat = out.to(at::kDouble).flatten();
  return at::dot(flat, at::arange(flat.numel(), at::kDouble).cos()).item<double>();
}

at::Tensor run(const std::string& model, const at::Tensor& input) {
  if (std::string_view(model).ends_with(".pt2")) {
    torch::inductor::AOTIModelPackageLoader package(model);
    return package.run({input}).front();
  }
  return torch::jit::load(model).forward({input}).toTensor();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: run_model libattn_torch.so model.pt|model.pt2 length\n");
    return 2;
  }
  // Registers torch.ops.attn_ops; before it, a model that calls them cannot be loaded.
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "run_model: %s\n", dlerror());
    return 1;
  }
  const c10::InferenceMode guard;
  std::printf("%.9g\n", fingerprint(run(argv[2], make_input(std::stoll(argv[3])))));
  return 0;
}
