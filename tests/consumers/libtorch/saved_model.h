// A model saved from Python, TorchScript or an AOTInductor package, and what both programs do.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

using Tensors = std::vector<at::Tensor>;

// Registers torch.ops.attn_ops; before it, a model that calls them cannot be loaded.
inline bool load_operators(const char* library) {
  if (dlopen(library, RTLD_NOW | RTLD_GLOBAL) != nullptr) return true;
  std::fprintf(stderr, "cannot load the operators: %s\n", dlerror());
  return false;
}

class SavedModel {
 public:
  explicit SavedModel(const std::string& file) {
    if (std::string_view(file).ends_with(".pt2")) {
      package_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(file);
    } else {
      script_ = torch::jit::load(file);
    }
  }

  // Returns the tensors of the result: of a tuple, each.
  Tensors operator()(const Tensors& inputs) {
    if (package_) return package_->run(inputs);
    const auto result = script_.forward({inputs.begin(), inputs.end()});
    if (result.isTensor()) return {result.toTensor()};
    Tensors outputs;
    for (const auto& value : result.toTupleRef().elements()) outputs.push_back(value.toTensor());
    return outputs;
  }

 private:
  torch::jit::Module script_;
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> package_;
};

// The same numbers as in test_libtorch.py.
inline at::Tensor make_input(at::IntArrayRef shape) {
  return at::arange(c10::multiply_integers(shape), at::kDouble).sin().to(at::kFloat).reshape(shape);
}

// Differs if any two elements are exchanged.
inline double fingerprint(const at::Tensor& out) {
  const auto flat = out.to(at::kDouble).flatten();
  return at::dot(flat, at::arange(flat.numel(), at::kDouble).cos()).item<double>();
}
