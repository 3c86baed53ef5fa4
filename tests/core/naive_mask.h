// Which keys a query sees and with what weight, after attn/mask.h word by word.
#pragma once

#include <vector>

#include "calls.h"

// Queries over keys of their own: one packed sequence, or a batch element where there are none.
struct NaiveSequence {
  int64_t b = 0;
  int64_t first_query = 0;  // its row
  int64_t num_queries = 0;
  std::vector<int64_t> key_rows{};  // where key j lies; a page may come twice

  int64_t num_keys() const { return static_cast<int64_t>(key_rows.size()); }
};

// The mask of one call. Queries i and keys j count within their sequence.
class NaiveMask {
 public:
  NaiveMask(const Arrays& arrays, const attn_mask& mask);

  const std::vector<NaiveSequence>& sequences() const { return sequences_; }

  bool sees(const NaiveSequence& s, int64_t h, int64_t i, int64_t j) const;
  // j - (i + shift), from the band's diagonal.
  int64_t distance(const NaiveSequence& s, int64_t i, int64_t j) const;
  // The table's entry for that distance.
  int64_t entry(int64_t distance) const;
  // What is added to the capped score of a key that is seen.
  double bias(const NaiveSequence& s, int64_t h, int64_t i, int64_t j) const;
  // 0 where dropout drops, else what it scales by.
  double kept(const NaiveSequence& s, int64_t h, int64_t i, int64_t j) const;

 private:
  NaiveSequence sequence(int64_t index) const;
  int64_t key_row(int64_t index, int64_t place) const;
  bool in_band(int64_t distance) const;
  bool in_blocks(int64_t h, int64_t i, int64_t j) const;

  const Arrays& a_;
  const attn_mask& mask_;
  std::vector<NaiveSequence> sequences_;
};

// For each [b, row, h] of `arrays.key`, whether any query row of [b, h, i] sees it.
class SeenKeys {
 public:
  SeenKeys(const Arrays& arrays, const attn_mask& mask);

  bool by_any(int64_t b, int64_t row, int64_t key_head) const;
  bool by(int64_t b, int64_t row, int64_t h, int64_t query_row) const;

 private:
  const int64_t Mq_, Mkv_, Hq_, G_;
  std::vector<bool> seen_;  // [B, Mkv, Hq, Mq]
};
