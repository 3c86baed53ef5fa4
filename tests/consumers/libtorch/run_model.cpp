// Feeds tensors to a model saved from Python, TorchScript or an AOTInductor package, carries its
// state, if it has one, and prints for each output a number that stands for it.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/script.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;

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

// The list of tensors that torch.save wrote.
Tensors read_tensors(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(stream), {});
  const c10::IValue list = torch::jit::pickle_load(bytes);
  Tensors tensors;
  for (const auto& value : list.toListRef()) tensors.push_back(value.toTensor());
  return tensors;
}

// The same number as in test_libtorch.py: it differs if any two elements are exchanged.
double fingerprint(const at::Tensor& out) {
  const auto flat = out.to(at::kDouble).flatten();
  return at::dot(flat, at::arange(flat.numel(), at::kDouble).cos()).item<double>();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5) {
    std::fprintf(stderr,
                 "usage: run_model libattn_torch.so model.pt|model.pt2 inputs.pt [state.pt]\n");
    return 2;
  }
  // Registers torch.ops.attn_ops: without it, a model that calls them cannot be loaded.
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "cannot load the operators: %s\n", dlerror());
    return 1;
  }
  const c10::InferenceMode guard;
  SavedModel model(argv[2]);
  Tensors state = argc == 5 ? read_tensors(argv[4]) : Tensors();
  for (const auto& input : read_tensors(argv[3])) {
    Tensors arguments{input};
    arguments.insert(arguments.end(), state.begin(), state.end());
    const Tensors results = model(arguments);
    at::Tensor out = results.front();
    if (argc == 5) {  // the output, the tensors of the state, and which of the streams have one
      state.assign(results.begin() + 1, results.end() - 1);
      out = out.index({results.back()});
    }
    std::printf("%.9g\n", fingerprint(out));
  }
  return 0;
}
