// Counts wavefronts, and prints them when the process ends.
#include "wavefronts.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>

namespace attn::ptx {
namespace {

constexpr uint64_t kBanks = 32;
constexpr size_t kWordBytes = 4;

struct Requests {
  int64_t count = 0, wavefronts = 0;
  int64_t fewest = 0;  // wavefronts, if no two words were of one bank
};

class Counts {
 public:
  ~Counts() {
    for (const auto& [kernel, requests] : of_) {
      std::printf("%s: %lld requests, %lld wavefronts, at least %lld\n", kernel.c_str(),
                  static_cast<long long>(requests.count),
                  static_cast<long long>(requests.wavefronts),
                  static_cast<long long>(requests.fewest));
    }
  }
  Requests& of(const std::string& kernel) { return of_[kernel]; }

 private:
  std::map<std::string, Requests> of_;
};

// Lanes that are served together: as many as ask for 128 bytes.
void count_together(Requests& requests, const Addresses& addresses, Lanes lanes, size_t bytes) {
  std::set<uint64_t> words;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    const uint64_t first = addresses[lane] / kWordBytes;
    for (uint64_t word = first; word <= (addresses[lane] + bytes - 1) / kWordBytes; ++word) {
      words.insert(word);
    }
  }
  std::array<int64_t, kBanks> of_banks{};
  for (const uint64_t word : words) ++of_banks[word % kBanks];
  requests.wavefronts += *std::max_element(of_banks.begin(), of_banks.end());
  requests.fewest += static_cast<int64_t>((words.size() + kBanks - 1) / kBanks);
}

}  // namespace

void count_wavefronts(const Program& program, const Addresses& addresses, Lanes lanes,
                      size_t bytes) {
  static const bool is_wanted = std::getenv("ATTN_COUNT_WAVEFRONTS") != nullptr;
  if (!is_wanted) return;
  static Counts counts;
  Requests& requests = counts.of(program.name);
  ++requests.count;
  const int together = static_cast<int>(kBanks * kWordBytes / std::max(bytes, kWordBytes));
  const Lanes group = together == kLanes ? ~Lanes{0} : (Lanes{1} << together) - 1;
  for (int first = 0; first < kLanes; first += together) {
    count_together(requests, addresses, lanes & group << first, bytes);
  }
}

}  // namespace attn::ptx
