// Follows attn/attention.h word by word, and nothing of the library's code.
#include "naive_attention.h"

#include <algorithm>
#include <cmath>

#include "naive_mask.h"

namespace {

// The values of a contiguous array, widened once: each is read many times.
class Wide {
 public:
  explicit Wide(const Array& array) : array_(array), values_(array.size()) {
    for (int64_t i = 0; i < array.size(); ++i) values_[i] = array.get(i);
  }

  bool exists() const { return array_.exists(); }
  int64_t extent(int axis) const { return array_.extent(axis); }
  int64_t place(int64_t a, int64_t b, int64_t c) const { return array_.at(a, b, c, 0); }
  const double* from(int64_t place) const { return values_.data() + place; }

 private:
  const Array& array_;
  std::vector<double> values_;
};

// One query row: its place, and its probabilities before dropout.
struct Row {
  const NaiveSequence& s;
  int64_t h, i;
  std::vector<double> scores;         // scaled, before the cap
  std::vector<double> probabilities;  // per key of the sequence
  double sink = 0.0;                  // the sink's probability
  double lse = -HUGE_VAL;

  int64_t place() const { return s.first_query + i; }
};

class Naive {
 public:
  Naive(const Arrays& arrays, const attn_mask& mask)
      : a_(arrays),
        mask_(mask),
        masks_(arrays, mask),
        query_(arrays.query),
        key_(arrays.key),
        value_(arrays.value),
        grad_out_(arrays.grad_out),
        position_query_(arrays.position_query),
        position_key_(arrays.position_key),
        key_table_(arrays.key_table),
        query_table_(arrays.query_table),
        G_(arrays.query.extent(2) / arrays.key.extent(2)),
        scale_(1.0 / std::sqrt(1.0 * arrays.query.extent(3))) {}

  NaiveForward forward() const {
    NaiveForward result;
    result.out.resize(a_.out.size());
    result.lse.assign(a_.lse.size(), -HUGE_VAL);
    each_row([&](const Row& row) {
      result.lse[lse_place(row)] = row.lse;
      for (int64_t j = 0; j < row.s.num_keys(); ++j) {
        const double weight = row.probabilities[j] * masks_.kept(row.s, row.h, row.i, j);
        const double* value = value_.from(value_place(row, j));
        double* out = &result.out[a_.out.at(row.s.b, row.place(), row.h, 0)];
        for (int64_t c = 0; c < value_.extent(3); ++c) out[c] += weight * value[c];
      }
    });
    return result;
  }

  NaiveBackward backward() const {
    NaiveBackward result;
    result.grad_query.resize(a_.query.size());
    result.grad_key.resize(a_.key.size());
    result.grad_value.resize(a_.value.size());
    result.grad_bias.resize(a_.grad_bias.size());
    for (auto* list : {&result.grad_slopes, &result.slopes_terms}) list->resize(a_.slopes.size());
    for (auto* list : {&result.grad_table, &result.table_terms}) list->resize(a_.table.size());
    for (auto* list : {&result.grad_sink, &result.sink_terms}) list->resize(a_.sink.size());
    result.grad_position_query.resize(a_.position_query.size());
    result.grad_position_key.resize(a_.position_key.size());
    for (auto* list : {&result.grad_key_table, &result.key_table_terms}) {
      list->resize(a_.key_table.size());
    }
    for (auto* list : {&result.grad_query_table, &result.query_table_terms}) {
      list->resize(a_.query_table.size());
    }
    each_row([&](const Row& row) { differentiate(row, result); });
    return result;
  }

 private:
  template <class F>
  void each_row(F&& visit) const {
    for (const NaiveSequence& s : masks_.sequences()) {
      for (int64_t h = 0; h < a_.query.extent(2); ++h) {
        for (int64_t i = 0; i < s.num_queries; ++i) visit(attended(s, h, i));
      }
    }
  }

  Row attended(const NaiveSequence& s, int64_t h, int64_t i) const {
    Row row{.s = s, .h = h, .i = i, .scores = {}, .probabilities = {}};
    row.scores.resize(s.num_keys());
    row.probabilities.assign(s.num_keys(), -HUGE_VAL);
    double largest = a_.sink.exists() ? a_.sink.get(h) : -HUGE_VAL;
    for (int64_t j = 0; j < s.num_keys(); ++j) {
      if (!masks_.sees(s, h, i, j)) continue;
      row.scores[j] = score(row, j);
      row.probabilities[j] = capped(row.scores[j]) + masks_.bias(s, h, i, j) + of_positions(row, j);
      largest = std::fmax(largest, row.probabilities[j]);
    }
    const double reference = largest == -HUGE_VAL ? 0.0 : largest;
    row.sink = a_.sink.exists() ? std::exp(a_.sink.get(h) - reference) : 0.0;
    double sum = row.sink;
    for (double& p : row.probabilities) sum += p = std::exp(p - reference);
    if (sum == 0.0) return row;
    for (double& p : row.probabilities) p /= sum;
    row.sink /= sum;
    row.lse = reference + std::log(sum);
    return row;
  }

  void differentiate(const Row& row, NaiveBackward& result) const {
    std::vector<double> grad_p(row.s.num_keys());
    const double* grad_out = grad_out_.from(grad_out_.place(row.s.b, row.place(), row.h));
    double mean_grad = 0.0;
    for (int64_t j = 0; j < row.s.num_keys(); ++j) {
      const double kept = masks_.kept(row.s, row.h, row.i, j);
      const double* value = value_.from(value_place(row, j));
      double* grad_value = &result.grad_value[value_place(row, j)];
      for (int64_t c = 0; c < value_.extent(3); ++c) {
        grad_p[j] += kept * grad_out[c] * value[c];
        grad_value[c] += row.probabilities[j] * kept * grad_out[c];
      }
      mean_grad += row.probabilities[j] * grad_p[j];
    }
    const double of_all = a_.grad_lse.get(lse_place(row)) - mean_grad;
    const double size_of_all = std::fabs(a_.grad_lse.get(lse_place(row))) + std::fabs(mean_grad);
    for (int64_t j = 0; j < row.s.num_keys(); ++j) {
      const double p = row.probabilities[j];
      if (p == 0.0) continue;
      add_score(row, j, p * (grad_p[j] + of_all), p * (std::fabs(grad_p[j]) + size_of_all), result);
    }
    if (!a_.sink.exists()) return;
    result.grad_sink[row.h] += row.sink * of_all;
    result.sink_terms[row.h] += row.sink * size_of_all;
  }

  // `grad` is that of the capped score with its biases; `size` what it is rounded relative to.
  void add_score(const Row& row, int64_t j, double grad, double size, NaiveBackward& result) const {
    const NaiveSequence& s = row.s;
    const int64_t h = row.h, distance = masks_.distance(s, row.i, j);
    if (a_.grad_bias.exists()) {
      result.grad_bias[a_.grad_bias.at(s.b, h, row.place(), s.key_rows[j])] += grad;
    }
    if (a_.slopes.exists()) {
      result.grad_slopes[h] -= grad * static_cast<double>(std::abs(distance));
      result.slopes_terms[h] += size * static_cast<double>(std::abs(distance));
    }
    if (a_.table.exists()) {
      const int64_t entry = h * a_.table.extent(1) + masks_.entry(distance);
      result.grad_table[entry] += grad;
      result.table_terms[entry] += size;
    }
    add_positions(row, j, grad * scale_, size * scale_, result);
    const double grad_dot = grad * cap_slope(row.scores[j]) * scale_;
    const double* query = query_.from(query_place(row));
    const double* key = key_.from(key_place(row, j));
    double* grad_query = &result.grad_query[query_place(row)];
    double* grad_key = &result.grad_key[key_place(row, j)];
    for (int64_t c = 0; c < query_.extent(3); ++c) {
      grad_query[c] += grad_dot * key[c];
      grad_key[c] += grad_dot * query[c];
    }
  }

  // What a pair of features and table multiplies for query row.i and key j, and where.
  struct Factors {
    int64_t width = 0, feature = 0, entry = 0;
  };
  Factors factors(const Wide& features, const Wide& table, const Array& places, const Row& row,
                  int64_t line, int64_t j) const {
    const int64_t rows = table.extent(1), width = table.extent(2);
    const int64_t distances = places.exists() ? places.size() : rows;
    int64_t r = std::clamp<int64_t>(masks_.distance(row.s, row.i, j) + mask_.positions.zero_row, 0,
                                    distances - 1);
    if (places.exists()) r = static_cast<int64_t>(places.get(r));
    const int64_t head = table.extent(0) == 1 ? 0 : row.h;
    return {width, features.place(row.s.b, line, row.h), (head * rows + r) * width};
  }
  Factors of_query(const Row& row, int64_t j) const {
    return factors(query_features(), key_table_, a_.key_table_rows, row, row.i, j);
  }
  Factors of_key(const Row& row, int64_t j) const {
    return factors(key_features(), query_table_, a_.query_table_rows, row, j, j);
  }
  const Wide& query_features() const { return position_query_.exists() ? position_query_ : query_; }
  const Wide& key_features() const { return position_key_.exists() ? position_key_ : key_; }

  double of_positions(const Row& row, int64_t j) const {
    double sum = 0.0;
    if (key_table_.exists()) sum += dot(query_features(), key_table_, of_query(row, j));
    if (query_table_.exists()) sum += dot(key_features(), query_table_, of_key(row, j));
    return sum * scale_;
  }
  static double dot(const Wide& features, const Wide& table, const Factors& at) {
    return dot(features.from(at.feature), table.from(at.entry), at.width);
  }
  static double dot(const double* x, const double* y, int64_t count) {
    double sum = 0.0;
    for (int64_t c = 0; c < count; ++c) sum += x[c] * y[c];
    return sum;
  }

  void add_positions(const Row& row, int64_t j, double grad, double size,
                     NaiveBackward& result) const {
    if (key_table_.exists()) {
      add_products(query_features(), key_table_, of_query(row, j), grad, size,
                   position_query_.exists() ? result.grad_position_query : result.grad_query,
                   result.grad_key_table, result.key_table_terms);
    }
    if (query_table_.exists()) {
      add_products(key_features(), query_table_, of_key(row, j), grad, size,
                   position_key_.exists() ? result.grad_position_key : result.grad_key,
                   result.grad_query_table, result.query_table_terms);
    }
  }
  static void add_products(const Wide& features, const Wide& table, const Factors& at, double grad,
                           double size, std::vector<double>& grad_features,
                           std::vector<double>& grad_table, std::vector<double>& terms) {
    const double* feature = features.from(at.feature);
    const double* entry = table.from(at.entry);
    for (int64_t c = 0; c < at.width; ++c) {
      grad_features[at.feature + c] += grad * entry[c];
      grad_table[at.entry + c] += grad * feature[c];
      terms[at.entry + c] += size * std::fabs(feature[c]);
    }
  }

  double score(const Row& row, int64_t j) const {
    const double* query = query_.from(query_place(row));
    return scale_ * dot(query, key_.from(key_place(row, j)), query_.extent(3));
  }

  double capped(double score) const {
    return mask_.softcap > 0 ? mask_.softcap * std::tanh(score / mask_.softcap) : score;
  }
  double cap_slope(double score) const {
    if (mask_.softcap == 0.0) return 1.0;
    const double t = std::tanh(score / mask_.softcap);
    return 1.0 - t * t;
  }

  // Where a row begins.
  int64_t query_place(const Row& row) const { return query_.place(row.s.b, row.place(), row.h); }
  int64_t key_place(const Row& row, int64_t j) const {
    return key_.place(row.s.b, row.s.key_rows[j], row.h / G_);
  }
  int64_t value_place(const Row& row, int64_t j) const {
    return value_.place(row.s.b, row.s.key_rows[j], row.h / G_);
  }
  int64_t lse_place(const Row& row) const {
    return (row.s.b * a_.query.extent(2) + row.h) * a_.query.extent(1) + row.place();
  }

  const Arrays& a_;
  const attn_mask& mask_;
  const NaiveMask masks_;
  const Wide query_, key_, value_, grad_out_;
  const Wide position_query_, position_key_, key_table_, query_table_;
  const int64_t G_;
  const double scale_;
};

}  // namespace

NaiveForward naive_forward(const Arrays& arrays, const attn_mask& mask) {
  return Naive(arrays, mask).forward();
}

NaiveBackward naive_backward(const Arrays& arrays, const attn_mask& mask) {
  return Naive(arrays, mask).backward();
}
