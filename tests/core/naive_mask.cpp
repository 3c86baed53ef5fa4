// Sequences, pages and blocks as plain loops; nothing of the library's code.
#include "naive_mask.h"

#include <algorithm>
#include <cmath>

namespace {

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

int64_t integer(const Array& array, int64_t place) {
  return static_cast<int64_t>(array.get(place));
}

}  // namespace

NaiveMask::NaiveMask(const Arrays& arrays, const attn_mask& mask) : a_(arrays), mask_(mask) {
  if (a_.q_start.exists()) {
    for (int64_t s = 0; s + 1 < a_.q_start.extent(0); ++s) sequences_.push_back(sequence(s));
    return;
  }
  NaiveSequence whole{.num_queries = a_.query.extent(1)};
  for (int64_t row = 0; row < a_.key.extent(1); ++row) whole.key_rows.push_back(row);
  for (; whole.b < a_.query.extent(0); ++whole.b) sequences_.push_back(whole);
}

NaiveSequence NaiveMask::sequence(int64_t index) const {
  const int64_t first = integer(a_.q_start, index);
  NaiveSequence s{.first_query = first, .num_queries = integer(a_.q_start, index + 1) - first};
  const int64_t start = integer(a_.k_start, index);
  const int64_t length =
      a_.k_len.exists() ? integer(a_.k_len, index) : integer(a_.k_start, index + 1) - start;
  for (int64_t j = 0; j < length; ++j) s.key_rows.push_back(key_row(index, start + j));
  return s;
}

int64_t NaiveMask::key_row(int64_t index, int64_t place) const {
  if (!a_.block_table.exists()) return place;
  const int64_t size = mask_.pages.page_size;
  const int64_t page = integer(a_.block_table, index * a_.block_table.extent(1) + place / size);
  return page * size + place % size;
}

int64_t NaiveMask::distance(const NaiveSequence& s, int64_t i, int64_t j) const {
  const bool at_end = mask_.band.anchor == ATTN_ANCHOR_BOTTOM_RIGHT;
  return j - (i + (at_end ? s.num_keys() - s.num_queries : 0));
}

int64_t NaiveMask::entry(int64_t distance) const {
  const int64_t radius = a_.table.extent(1) / 2;
  return std::clamp(distance, -radius, radius) + radius;
}

bool NaiveMask::in_band(int64_t distance) const {
  const attn_band& band = mask_.band;
  return (band.left == ATTN_UNBOUNDED || distance >= -band.left) &&
         (band.right == ATTN_UNBOUNDED || distance <= band.right);
}

bool NaiveMask::in_blocks(int64_t h, int64_t i, int64_t j) const {
  const int64_t size = mask_.blocks.block_size;
  const int64_t head = a_.offsets.extent(0) == 1 ? 0 : h;
  const int64_t list = head * a_.offsets.extent(1) + i / size;
  for (int64_t at = integer(a_.offsets, list); at < integer(a_.offsets, list + 1); ++at) {
    if (integer(a_.indices, at) == j / size) return true;
  }
  return false;
}

bool NaiveMask::sees(const NaiveSequence& s, int64_t h, int64_t i, int64_t j) const {
  if (!in_band(distance(s, i, j))) return false;
  if (a_.offsets.exists() && !in_blocks(h, i, j)) return false;
  if (!a_.bias.exists()) return true;
  const double bias = a_.bias.get(a_.bias.at(s.b, h, s.first_query + i, s.key_rows[j]));
  return same(a_.bias.dtype(), kBool) ? bias != 0.0 : bias != -HUGE_VAL;
}

double NaiveMask::bias(const NaiveSequence& s, int64_t h, int64_t i, int64_t j) const {
  double sum = 0.0;
  if (a_.bias.exists() && !same(a_.bias.dtype(), kBool)) {
    sum += a_.bias.get(a_.bias.at(s.b, h, s.first_query + i, s.key_rows[j]));
  }
  const int64_t d = distance(s, i, j);
  if (a_.slopes.exists()) sum -= a_.slopes.get(h) * static_cast<double>(std::abs(d));
  if (a_.table.exists()) sum += a_.table.get(h * a_.table.extent(1) + entry(d));
  return sum;
}

double NaiveMask::kept(const NaiveSequence& s, int64_t h, int64_t i, int64_t j) const {
  const attn_dropout& dropout = mask_.dropout;
  if (dropout.p == 0.0) return 1.0;
  const auto low = [](uint64_t word) { return static_cast<uint32_t>(word); };
  const Words key = philox({{low(dropout.offset), low(dropout.offset >> 32), 0, 0}},
                           low(dropout.seed), low(dropout.seed >> 32));
  const Words draws =
      philox({{low(s.b), low(h), low(s.first_query + i), low(j / 4)}}, key.w[0], key.w[1]);
  return draws.w[j % 4] >= dropout.p * 4294967296.0 ? 1.0 / (1.0 - dropout.p) : 0.0;
}

SeenKeys::SeenKeys(const Arrays& arrays, const attn_mask& mask)
    : Mq_(arrays.query.extent(1)),
      Mkv_(arrays.key.extent(1)),
      Hq_(arrays.query.extent(2)),
      G_(Hq_ / arrays.key.extent(2)),
      seen_(arrays.query.extent(0) * Mkv_ * Hq_ * Mq_) {
  const NaiveMask masks(arrays, mask);
  for (const NaiveSequence& s : masks.sequences()) {
    for (int64_t h = 0; h < Hq_; ++h) {
      for (int64_t i = 0; i < s.num_queries; ++i) {
        for (int64_t j = 0; j < s.num_keys(); ++j) {
          if (!masks.sees(s, h, i, j)) continue;
          seen_[((s.b * Mkv_ + s.key_rows[j]) * Hq_ + h) * Mq_ + s.first_query + i] = true;
        }
      }
    }
  }
}

bool SeenKeys::by(int64_t b, int64_t row, int64_t h, int64_t query_row) const {
  return seen_[((b * Mkv_ + row) * Hq_ + h) * Mq_ + query_row];
}

bool SeenKeys::by_any(int64_t b, int64_t row, int64_t key_head) const {
  const auto first = seen_.begin() + ((b * Mkv_ + row) * Hq_ + key_head * G_) * Mq_;
  return std::find(first, first + G_ * Mq_, true) != first + G_ * Mq_;
}
