// Feeds streams to a saved step, carries their state, and prints a number for all valid outputs.
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iterator>

#include "saved_model.h"

namespace {

// The list of tensors that torch.save wrote.
Tensors read_tensors(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(stream), {});
  const c10::IValue list = torch::jit::pickle_load(bytes);
  Tensors tensors;
  for (const auto& value : list.toListRef()) tensors.push_back(value.toTensor());
  return tensors;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr,
                 "usage: run_stream libattn_torch.so step.pt|step.pt2 state.pt inputs.pt\n");
    return 2;
  }
  if (!load_operators(argv[1])) return 1;
  const c10::InferenceMode guard;
  SavedModel step(argv[2]);
  Tensors state = read_tensors(argv[3]);
  Tensors valid_outputs;
  for (const auto& input : read_tensors(argv[4])) {
    Tensors arguments{input};
    arguments.insert(arguments.end(), state.begin(), state.end());
    const Tensors results = step(arguments);  // output, the tensors of the state, valid
    state.assign(results.begin() + 1, results.end() - 1);
    valid_outputs.push_back(results.front().index({results.back()}));
  }
  std::printf("%.9g\n", fingerprint(at::cat(valid_outputs)));
  return 0;
}
