// Follows attn/attention.h and attn/mask.h word by word, and nothing of the library's code.
#include "naive_attention.h"

#include <cmath>
#include <limits>

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Words {
  uint32_t w[4];
};

// Random123's philox4x32, written after the paper's figure 4.
Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * counter.w[0], b = 0xCD9E8D57ull * counter.w[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.w[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.w[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// One problem, with the probabilities of one query row at a time.
class Naive {
 public:
  Naive(const Arrays& arrays, const attn_mask& mask)
      : a_(arrays), mask_(mask), G_(Hq() / Hkv()), scale_(1.0 / std::sqrt(1.0 * K())) {}

  int64_t B() const { return a_.query.extent(0); }
  int64_t Mq() const { return a_.query.extent(1); }
  int64_t Hq() const { return a_.query.extent(2); }
  int64_t K() const { return a_.query.extent(3); }
  int64_t Mkv() const { return a_.key.extent(1); }
  int64_t Hkv() const { return a_.key.extent(2); }
  int64_t Kv() const { return a_.value.extent(3); }
  double scale() const { return scale_; }

  double query(int64_t b, int64_t i, int64_t h, int64_t c) const {
    return a_.query.get(a_.query.at(b, i, h, c));
  }
  double key(int64_t b, int64_t j, int64_t h, int64_t c) const {
    return a_.key.get(a_.key.at(b, j, h / G_, c));
  }
  double value(int64_t b, int64_t j, int64_t h, int64_t c) const {
    return a_.value.get(a_.value.at(b, j, h / G_, c));
  }
  double grad_out(int64_t b, int64_t i, int64_t h, int64_t c) const {
    return a_.grad_out.get(a_.grad_out.at(b, i, h, c));
  }

  // Whether band and bias let query i see key j.
  bool sees(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (!band_sees(i, j) || !mask_.bias) return band_sees(i, j);
    const double bias = a_.bias.get(a_.bias.at(b, h, i, j));
    return same(a_.bias.dtype(), kBool) ? bias != 0.0 : bias != -kInfinity;
  }

  // Fills p[j] with the probabilities of query i before dropout; returns the row's lse.
  double probabilities(int64_t b, int64_t h, int64_t i, std::vector<double>& p) const {
    double largest = -kInfinity;
    for (int64_t j = 0; j < Mkv(); ++j) {
      p[j] = score(b, h, i, j);
      largest = std::fmax(largest, p[j]);
    }
    if (largest == -kInfinity) {
      for (double& probability : p) probability = 0.0;
      return -kInfinity;
    }
    double sum = 0.0;
    for (int64_t j = 0; j < Mkv(); ++j) sum += p[j] = std::exp(p[j] - largest);
    for (double& probability : p) probability /= sum;
    return largest + std::log(sum);
  }

  // 0 where dropout drops, else what it scales by.
  double kept(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const attn_dropout& dropout = mask_.dropout;
    if (dropout.p == 0.0) return 1.0;
    const auto low = [](uint64_t word) { return static_cast<uint32_t>(word); };
    const Words key = philox({{low(dropout.offset), low(dropout.offset >> 32), 0, 0}},
                             low(dropout.seed), low(dropout.seed >> 32));
    const Words draws = philox({{low(b), low(h), low(i), low(j / 4)}}, key.w[0], key.w[1]);
    return draws.w[j % 4] >= dropout.p * 4294967296.0 ? 1.0 / (1.0 - dropout.p) : 0.0;
  }

 private:
  bool band_sees(int64_t i, int64_t j) const {
    const attn_band& band = mask_.band;
    const int64_t shift = band.anchor == ATTN_ANCHOR_BOTTOM_RIGHT ? Mkv() - Mq() : 0;
    const int64_t distance = j - (i + shift);
    return (band.left == ATTN_UNBOUNDED || distance >= -band.left) &&
           (band.right == ATTN_UNBOUNDED || distance <= band.right);
  }

  double score(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (!sees(b, h, i, j)) return -kInfinity;
    double sum = 0.0;
    for (int64_t c = 0; c < K(); ++c) sum += query(b, i, h, c) * key(b, j, h, c);
    sum *= scale_;
    if (!mask_.bias || same(a_.bias.dtype(), kBool)) return sum;
    return sum + a_.bias.get(a_.bias.at(b, h, i, j));
  }

  const Arrays& a_;
  const attn_mask& mask_;
  int64_t G_;
  double scale_;
};

}  // namespace

bool naive_sees(const Arrays& arrays, const attn_mask& mask, int64_t b, int64_t h, int64_t i,
                int64_t j) {
  return Naive(arrays, mask).sees(b, h, i, j);
}

NaiveForward naive_forward(const Arrays& arrays, const attn_mask& mask) {
  const Naive n(arrays, mask);
  NaiveForward result;
  result.out.resize(arrays.out.size());
  result.lse.resize(arrays.lse.size());
  std::vector<double> p(n.Mkv());
  for (int64_t b = 0; b < n.B(); ++b) {
    for (int64_t h = 0; h < n.Hq(); ++h) {
      for (int64_t i = 0; i < n.Mq(); ++i) {
        result.lse[(b * n.Hq() + h) * n.Mq() + i] = n.probabilities(b, h, i, p);
        for (int64_t j = 0; j < n.Mkv(); ++j) {
          const double weight = p[j] * n.kept(b, h, i, j);
          for (int64_t c = 0; c < n.Kv(); ++c) {
            result.out[arrays.out.at(b, i, h, c)] += weight * n.value(b, j, h, c);
          }
        }
      }
    }
  }
  return result;
}

NaiveBackward naive_backward(const Arrays& arrays, const attn_mask& mask) {
  const Naive n(arrays, mask);
  const int64_t G = n.Hq() / n.Hkv();
  NaiveBackward result;
  result.grad_query.resize(arrays.grad_query.size());
  result.grad_key.resize(arrays.grad_key.size());
  result.grad_value.resize(arrays.grad_value.size());
  result.grad_bias.resize(arrays.grad_bias.shape().empty() ? 0 : arrays.grad_bias.size());
  std::vector<double> p(n.Mkv()), grad_p(n.Mkv());
  for (int64_t b = 0; b < n.B(); ++b) {
    for (int64_t h = 0; h < n.Hq(); ++h) {
      for (int64_t i = 0; i < n.Mq(); ++i) {
        n.probabilities(b, h, i, p);
        double mean_grad = 0.0;
        for (int64_t j = 0; j < n.Mkv(); ++j) {
          const double kept = n.kept(b, h, i, j);
          double dot = 0.0;
          for (int64_t c = 0; c < n.Kv(); ++c) {
            dot += n.grad_out(b, i, h, c) * n.value(b, j, h, c);
            result.grad_value[arrays.grad_value.at(b, j, h / G, c)] +=
                p[j] * kept * n.grad_out(b, i, h, c);
          }
          grad_p[j] = dot * kept;
          mean_grad += p[j] * grad_p[j];
        }
        const double grad_lse = arrays.grad_lse.get((b * n.Hq() + h) * n.Mq() + i);
        for (int64_t j = 0; j < n.Mkv(); ++j) {
          const double grad_score = p[j] * (grad_p[j] - mean_grad + grad_lse);
          for (int64_t c = 0; c < n.K(); ++c) {
            result.grad_query[arrays.query.at(b, i, h, c)] +=
                grad_score * n.scale() * n.key(b, j, h, c);
            result.grad_key[arrays.key.at(b, j, h / G, c)] +=
                grad_score * n.scale() * n.query(b, i, h, c);
          }
          if (!result.grad_bias.empty()) {
            result.grad_bias[arrays.grad_bias.at(b, h, i, j)] += grad_score;
          }
        }
      }
    }
  }
  return result;
}
