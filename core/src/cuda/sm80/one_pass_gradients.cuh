// dQ, dK and dV in one pass: a block of threads owns a tile of keys, keeps the sums of dK and dV in
// registers, and adds to dQ of one tile of queries after the other.
//
// Blocks of a head add to the same dQ in turns, from the last keys to the first, so that sums round
// alike on every run. Under a causal band or a window a block is the first to add to the queries it
// begins with, so that it waits for nobody; those with keys before follow it a few queries behind.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include "cuda/device/turns.cuh"
#include "cuda/sm80/one_pass_tiles.cuh"

namespace attn::cuda {

// sums += the transpose of left's columns [left_column, left_column + 16 kRowTiles), times right's
// kColumns columns from `right_column` on; both over kDepth rows.
template <int kDepth, int kRowTiles, int kColumns, class Left, class Right>
ATTN_DEVICE void add_transposed(Sums<kColumns> (&sums)[kRowTiles], const Left& left,
                                int left_column, const Right& right, int right_column) {
#pragma unroll(sizeof(typename Left::Element) == 4 ? 1 : kDepth / kStepDepth)
  for (int row = 0; row < kDepth; row += kStepDepth) {
    add_step<typename Left::Element, kRowTiles>(
        sums, right.splits,
        [&](uint32_t(&a)[4], int m, int i) {
          left.load_left_by_depth(a, row + i * Left::kDepth, left_column + 16 * m);
        },
        [&](uint32_t(&b)[4], int n, int i) {
          right.load_right_by_depth(b, row + i * Right::kDepth, right_column + 16 * n);
        });
  }
}

// The tiles of keys that add to dQ of a tile of queries, from last to first; none if first > last.
struct KeyTiles {
  int first, last;

  ATTN_DEVICE KeyTiles(const KeyBand& band, int rows) {
    const KeySpan span = key_span<1>(band, rows);
    first = span.begin / kOnePassKeys;
    last = (span.end + kOnePassKeys - 1) / kOnePassKeys - 1;
  }
  ATTN_DEVICE int turn_of(int tile) const { return last - tile; }
};

template <class Element, int kWidth>
class OnePass {
 public:
  ATTN_DEVICE explicit OnePass(const OnePassArguments& arguments)
      : arguments_(arguments),
        tiles_(arguments.backward),
        p_(tiles_.p),
        facts_(tiles_.memory.facts()) {}

  ATTN_DEVICE void run() {
    if (thread_index() == 0) find_facts(take_ticket(arguments_.tickets));
    synchronise_block();
    if (facts_.key_tile == 0 && p_.grad_query) clear_queries_without_keys();
    tiles_.load_keys(0, facts_.b, facts_.key_head, facts_.key_tile * kKeys);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      key_sums_[m].clear();
      value_sums_[m].clear();
    }
    const Step first = first_from({0, facts_.begin});
    begin_stage(0, first);
    if (is_there(first)) load_biases(first);
    commit_copies();
    int stage = 0;
#pragma unroll 1
    while (true) {
      wait_for_copies<0>();
      synchronise_block();
      if (thread_index() == 0) pass_turn_of(facts_.steps[stage ^ 1]);
      const Step step = facts_.steps[stage];
      if (!is_there(step)) break;
      begin_stage(stage ^ 1, first_from({step.g, step.query_tile + 1}));
      commit_copies();
      share_gradients(stage, place_of(step));
      synchronise_block();
      const Step next = facts_.steps[stage ^ 1];
      if (is_there(next)) load_biases(next);
      commit_copies();
      if (arguments_.backward.stores_grad_bias) {
        tiles_.store_score_gradients(p_.grad_bias, place_of(facts_.steps[stage]));
      }
      add_to_key_sums(stage);
      if (p_.grad_query) add_to_queries(facts_.steps[stage]);
      stage ^= 1;
    }
    store_keys();
  }

 private:
  using Tiles = OnePassTiles<Element, kWidth>;
  using Pairs = typename Tiles::Pairs;
  static constexpr int kQueries = Tiles::kQueries, kKeys = Tiles::kKeys;
  static constexpr int kRowTiles = Tiles::kRowTiles, kWarpRows = Tiles::kWarpRows;
  // Of dQ each warp has 32 rows and a fourth of the columns; of dK and dV, half of them.
  static constexpr int kQueryColumns = kWidth / 4, kKeyColumns = kWidth / 2;

  using Step = OnePassStep;

  ATTN_DEVICE static int tiles_of(int64_t rows, int of) {
    return (static_cast<int>(rows) + of - 1) / of;
  }

  // By one thread: the block's keys, and the queries that may see them.
  ATTN_DEVICE void find_facts(int ticket) const {
    const int key_tiles = tiles_of(p_.Mkv, kKeys), heads = static_cast<int>(p_.Hkv);
    const int key_tile = key_tiles - 1 - ticket % key_tiles;
    tiles_.note_band();
    const KeyBand band = tiles_.band_of(0);
    const int first_key = key_tile * kKeys, queries = static_cast<int>(p_.Mq);
    const auto clamped = [&](int i) { return i < 0 ? 0 : i < queries ? i : queries; };
    facts_ = {.key_tile = key_tile,
              .key_head = ticket / key_tiles % heads,
              .b = ticket / key_tiles / heads,
              .query_tiles = tiles_of(p_.Mq, kQueries),
              .begin = clamped(first_key - band.last + 1) / kQueries,
              .end = tiles_of(clamped(first_key + kKeys - band.first), kQueries),
              .steps = {kNoStep, kNoStep},
              .band = band};
  }

  ATTN_DEVICE int head_of(const Step& step) const {
    return facts_.key_head * static_cast<int>(p_.G) + step.g;
  }
  ATTN_DEVICE OnePassPlace place_of(const Step& step) const {
    return {facts_.b, head_of(step), step.query_tile * kQueries, facts_.key_tile * kKeys};
  }
  // Among the tiles of queries of all heads.
  ATTN_DEVICE int64_t number_of(const Step& step) const {
    return (facts_.b * p_.Hq + head_of(step)) * facts_.query_tiles + step.query_tile;
  }
  ATTN_DEVICE int rows_of(const Step& step) const {
    const int rows = static_cast<int>(p_.Mq) - step.query_tile * kQueries;
    return rows < kQueries ? rows : kQueries;
  }
  ATTN_DEVICE KeyTiles key_tiles_of(const Step& step) const {
    return KeyTiles(tiles_.band_of(step.query_tile * kQueries), rows_of(step));
  }

  ATTN_DEVICE bool is_there(const Step& step) const { return step.g < p_.G; }

  // `step`, or the first after it whose queries see some of the keys.
  ATTN_DEVICE Step first_from(Step step) const {
    while (is_there(step)) {
      if (step.query_tile >= facts_.end) {
        step = {step.g + 1, facts_.begin};
        continue;
      }
      const KeyTiles seen = key_tiles_of(step);
      if (seen.first <= facts_.key_tile && facts_.key_tile <= seen.last) break;
      ++step.query_tile;
    }
    return step;
  }

  // Begins the copies of a step, if there is one, and notes it beside them.
  ATTN_DEVICE void begin_stage(int stage, const Step& step) const {
    if (thread_index() == 0) facts_.steps[stage] = step;
    if (!is_there(step)) return;
    tiles_.load_queries(stage, facts_.b, head_of(step), step.query_tile * kQueries);
  }
  ATTN_DEVICE void load_biases(const Step& step) const {
    if (p_.bias) tiles_.load_biases(place_of(step));
  }

  // Leaves P and dS in shared memory.
  ATTN_DEVICE void share_gradients(int stage, const OnePassPlace& place) const {
    typename Tiles::WarpSums probabilities, gradients;
    tiles_.find_probabilities(probabilities, stage, place);
    tiles_.share(tiles_.memory.probabilities(), probabilities);
    tiles_.find_score_gradients(gradients, probabilities, stage, place);
    tiles_.share(tiles_.memory.grad_scores(), gradients);
  }

  ATTN_DEVICE void add_to_key_sums(int stage) {
    const auto& memory = tiles_.memory;
    const int key = warp_index() % 4 * kWarpRows, column = warp_index() / 4 * kKeyColumns;
    add_transposed<kQueries>(value_sums_, memory.probabilities(), key, memory.grad_outs(stage),
                             column);
    add_transposed<kQueries>(key_sums_, memory.grad_scores(), key, memory.queries(stage), column);
  }

  ATTN_DEVICE static int own_query(int m, int r) {
    return warp_index() / 4 * kWarpRows + 16 * m + 8 * r + lane() / 4;
  }

  // After the block's barrier: what it added to dQ of a step can be added to.
  ATTN_DEVICE void pass_turn_of(const Step& step) const {
    if (step.g < 0 || !p_.grad_query) return;
    pass_turn(arguments_.turns + number_of(step), key_tiles_of(step).turn_of(facts_.key_tile));
  }

  // In its turn: what the tiles of keys after this one have added, and its own.
  ATTN_DEVICE void add_to_queries(const Step& step) const {
    const KeyTiles key_tiles = key_tiles_of(step);
    const int turn = key_tiles.turn_of(facts_.key_tile);
    constexpr int kFours = kQueryColumns / 8;  // of a row tile's sums
    Sums<kQueryColumns> sums[kRowTiles];
    FourFloats* const shared = static_cast<FourFloats*>(arguments_.sums) +
                               number_of(step) * (kQueries * kWidth / 4) + thread_index();
    if (turn > 0) {
      if (lane() == 0) wait_for_turn(arguments_.turns + number_of(step), turn);
      synchronise_warp();
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kFours; ++n) {
        FourFloats before{};
        if (turn > 0) before = read_shared_by_blocks(shared + (m * kFours + n) * kOnePassThreads);
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m].values[n][e] = before.values[e];
      }
    }
    add_weighted_keys(sums);
    if (facts_.key_tile == key_tiles.first) return store_queries(step, sums);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kFours; ++n) {
        const float(&x)[4] = sums[m].values[n];
        shared[(m * kFours + n) * kOnePassThreads] = {{x[0], x[1], x[2], x[3]}};
      }
    }
  }

  // sums += dS times the keys.
  ATTN_DEVICE void add_weighted_keys(Sums<kQueryColumns> (&sums)[kRowTiles]) const {
    const Pairs weights = tiles_.memory.grad_scores();
    const auto keys = tiles_.memory.keys(0);
    const int query = warp_index() / 4 * kWarpRows, column = warp_index() % 4 * kQueryColumns;
#pragma unroll(sizeof(Element) == 4 ? 1 : kKeys / kStepDepth)
    for (int block = 0; block < kKeys / Pairs::kDepth; block += kStepBlocks<Element>) {
      add_step<Element, kRowTiles>(
          sums, keys.splits,
          [&](uint32_t(&a)[4], int m, int i) { weights.load_left(a, query + 16 * m, block + i); },
          [&](uint32_t(&b)[4], int n, int i) {
            keys.load_right_by_depth(b, (block + i) * Pairs::kDepth, column + 16 * n);
          });
    }
  }

  // Writes rows of sums, times `factor`, and returns whether any is NaN. `row` and `column` are the
  // lane's first, in memory.
  template <int kColumns>
  ATTN_DEVICE bool store_rows(const Sums<kColumns> (&sums)[kRowTiles], const HeadRows& to, int h,
                              int row, int64_t rows, int column, int64_t width,
                              float factor) const {
    bool has_nan = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = row + 16 * m + 8 * r;
        Element* const first = reinterpret_cast<Element*>(to.row(facts_.b, at, h)) + column;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
          const float low = sums[m].values[n][2 * r], high = sums[m].values[n][2 * r + 1];
          has_nan |= low != low || high != high;
          if (at >= rows || column + 8 * n >= width) continue;
          store_pair(first + 8 * n, low * factor, high * factor);
        }
      }
    }
    return has_nan;
  }

  // Rows are of an even width, but perhaps at odd places.
  ATTN_DEVICE static void store_pair(Element* at, float low, float high) {
    if constexpr (sizeof(Element) == 2) {
      if (reinterpret_cast<uintptr_t>(at) % 4 == 0) {
        *reinterpret_cast<uint32_t*>(at) = pack<Element>(low, high);
        return;
      }
    }
    at[0] = from_float<Element>(low);
    at[1] = from_float<Element>(high);
  }

  ATTN_DEVICE void store_queries(const Step& step,
                                 const Sums<kQueryColumns> (&sums)[kRowTiles]) const {
    const int first = step.query_tile * kQueries, pair = lane() % 4 * 2;
    const bool has_nan =
        store_rows(sums, p_.grad_query, head_of(step), first + own_query(0, 0), p_.Mq,
                   warp_index() % 4 * kQueryColumns + pair, p_.K, static_cast<float>(p_.scale));
    // The kernels that take NaN with care count a head's tiles from its last rows.
    if (!has_nan) return;
    const int64_t head = facts_.b * p_.Hq + head_of(step);
    arguments_.backward.redo_queries[(head + 1) * facts_.query_tiles - 1 - step.query_tile] = 1;
  }

  ATTN_DEVICE void store_keys() const {
    const int key = warp_index() % 4 * kWarpRows;
    const int row = facts_.key_tile * kKeys + key + Tiles::key_of_column(lane() / 4);
    const int column = warp_index() / 4 * kKeyColumns + lane() % 4 * 2;
    bool has_nan = false;
    if (p_.grad_key) {
      has_nan |= store_rows(key_sums_, p_.grad_key, facts_.key_head, row, p_.Mkv, column, p_.K,
                            static_cast<float>(p_.scale));
    } else if (arguments_.backward.stores_grad_bias) {  // whose NaN are in these sums too
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) has_nan |= key_sums_[m].has_nan();
    }
    if (p_.grad_value) {
      has_nan |=
          store_rows(value_sums_, p_.grad_value, facts_.key_head, row, p_.Mkv, column, p_.Kv, 1.0f);
    }
    // Those kernels' tiles have half as many keys.
    const int64_t tiles = tiles_of(p_.Mkv, kRedoneKeys);
    const int64_t tile = 2 * facts_.key_tile + key / kRedoneKeys;
    if (has_nan && tile < tiles) {
      arguments_.backward.redo_keys[(facts_.b * p_.Hkv + facts_.key_head) * tiles + tile] = 1;
    }
  }

  // dQ of tiles that no block adds to.
  ATTN_DEVICE void clear_queries_without_keys() const {
    Sums<kQueryColumns> zeros[kRowTiles];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) zeros[m].clear();
    for (Step step{0, 0}; is_there(step); ++step.g) {
      for (step.query_tile = 0; step.query_tile < facts_.query_tiles; ++step.query_tile) {
        const KeyTiles seen = key_tiles_of(step);
        if (seen.first > seen.last) store_queries(step, zeros);
      }
    }
  }

  static constexpr Step kNoStep{-1, 0};
  static constexpr int kRedoneKeys = GradientShape<Element, kWidth>::kStationary;
  static_assert(GradientShape<Element, kWidth>::kStationary == kQueries);
  static_assert(2 * kRedoneKeys == kKeys && GradientShape<Element, kWidth>::kSumsBoth);

  const OnePassArguments& arguments_;
  const Tiles tiles_;
  const BackwardProblem& p_;
  OnePassFacts& facts_;
  Sums<kKeyColumns> key_sums_[kRowTiles], value_sums_[kRowTiles];
};

template <class Element, int kWidth>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kOnePassThreads, 1)
    one_pass_kernel(ATTN_ARGUMENTS const OnePassArguments arguments) {
  if constexpr (kCompiledCapability >= 80) OnePass<Element, kWidth>(arguments).run();
}

}  // namespace attn::cuda
