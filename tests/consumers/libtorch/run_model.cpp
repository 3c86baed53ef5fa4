// Runs one saved model on a fixed input and prints a number that stands for its output.
#include "saved_model.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: run_model libattn_torch.so model.pt|model.pt2 length\n");
    return 2;
  }
  if (!load_operators(argv[1])) return 1;
  const c10::InferenceMode guard;
  SavedModel model(argv[2]);
  const auto input = make_input({2, std::stoll(argv[3]), 3, 8});
  std::printf("%.9g\n", fingerprint(model({input}).front()));
  return 0;
}
