// An owned array of any dtype that the library knows, with values read and written as double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "attn/tensor.h"
#include "guarded_memory.h"

// GCC 12 knows no _Float16 in C++ on AArch64; the two convert alike.
#ifdef __aarch64__
using Half = __fp16;
#else
using Half = _Float16;
#endif

constexpr attn_dtype kFloat32 = {ATTN_DTYPE_FLOAT, 32, 1};
constexpr attn_dtype kFloat64 = {ATTN_DTYPE_FLOAT, 64, 1};
constexpr attn_dtype kFloat16 = {ATTN_DTYPE_FLOAT, 16, 1};
constexpr attn_dtype kBFloat16 = {ATTN_DTYPE_BFLOAT, 16, 1};
constexpr attn_dtype kBool = {ATTN_DTYPE_BOOL, 8, 1};
constexpr attn_dtype kInt32 = {ATTN_DTYPE_INT, 32, 1};
constexpr attn_dtype kInt64 = {ATTN_DTYPE_INT, 64, 1};

constexpr bool same(attn_dtype a, attn_dtype b) { return a.code == b.code && a.bits == b.bits; }

class Array {
 public:
  // What all tensors say they are on: with ATTN_TEST_DEVICE=cuda an emulated GPU, whose memory is
  // the host's.
  static inline const int32_t device_type =
      std::getenv("ATTN_TEST_DEVICE") ? ATTN_DEVICE_CUDA : ATTN_DEVICE_CPU;

  Array() = default;

  // Contiguous zeros.
  Array(attn_dtype dtype, std::vector<int64_t> shape)
      : dtype_(dtype), shape_(std::move(shape)), strides_(shape_.size()) {
    int64_t count = 1;
    for (size_t axis = shape_.size(); axis-- > 0;) {
      strides_[axis] = count;
      count *= shape_[axis];
    }
    bytes_.assign(count * dtype.bits / 8, 0);
  }

  // Values in [-2, 2); for bool, true with chance 3/4.
  static Array random(attn_dtype dtype, std::vector<int64_t> shape, unsigned seed) {
    Array array(dtype, std::move(shape));
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> uniform(-2.0, 2.0);
    for (int64_t i = 0; i < array.size(); ++i) {
      const double value = uniform(generator);
      array.set(i, same(dtype, kBool) ? value < 1.0 : value);
    }
    return array;
  }

  // A list of integers, or with `rows` a matrix of so many.
  static Array integers(const std::vector<int64_t>& values, int64_t rows = 0) {
    const int64_t count = static_cast<int64_t>(values.size());
    std::vector<int64_t> shape{count};
    if (rows > 0) shape = {rows, count / rows};
    Array array(kInt32, shape);
    for (int64_t i = 0; i < count; ++i) array.set(i, static_cast<double>(values[i]));
    return array;
  }

  void fill(char byte) { std::fill(bytes_.begin(), bytes_.end(), byte); }

  // As the library wants it; valid while this array neither moves nor dies.
  const attn_tensor* tensor() {
    tensor_ = {.data = bytes_.data(),
               .shape = shape_.data(),
               .strides = strides_.data(),
               .ndim = static_cast<int32_t>(shape_.size()),
               .device_type = device_type,
               .device_id = 0,
               .dtype = dtype_};
    return &tensor_;
  }

  // Whether this is an array at all, be it an empty one.
  bool exists() const { return !shape_.empty(); }
  attn_dtype dtype() const { return dtype_; }
  int64_t extent(int axis) const { return shape_[axis]; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t size() const {
    return exists() ? static_cast<int64_t>(bytes_.size()) * 8 / dtype_.bits : 0;
  }
  GuardedBytes& bytes() { return bytes_; }

  // The place of [a, b, c, d], where indices on axes of extent 1 do not count.
  int64_t at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    const int64_t index[] = {a, b, c, d};
    int64_t place = 0;
    for (int axis = 0; axis < 4; ++axis)
      place += shape_[axis] == 1 ? 0 : index[axis] * strides_[axis];
    return place;
  }

  double get(int64_t place) const {
    if (same(dtype_, kFloat64)) return load<double>(place);
    if (same(dtype_, kFloat32)) return load<float>(place);
    if (same(dtype_, kFloat16)) return static_cast<double>(load<Half>(place));
    if (same(dtype_, kBool)) return bytes_[place];
    if (same(dtype_, kInt32)) return load<int32_t>(place);
    if (same(dtype_, kInt64)) return static_cast<double>(load<int64_t>(place));
    const uint32_t bits = static_cast<uint32_t>(load<uint16_t>(place)) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  void set(int64_t place, double value) {
    if (same(dtype_, kFloat64)) return store(place, value);
    if (same(dtype_, kFloat32)) return store(place, static_cast<float>(value));
    if (same(dtype_, kFloat16)) return store(place, static_cast<Half>(value));
    if (same(dtype_, kBool)) return store(place, static_cast<char>(value != 0.0));
    if (same(dtype_, kInt32)) return store(place, static_cast<int32_t>(value));
    if (same(dtype_, kInt64)) return store(place, static_cast<int64_t>(value));
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof(bits));
    store(place, static_cast<uint16_t>(bits >> 16));
  }

 private:
  template <class T>
  T load(int64_t place) const {
    T value;
    std::memcpy(&value, bytes_.data() + place * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void store(int64_t place, T value) {
    std::memcpy(bytes_.data() + place * sizeof(T), &value, sizeof(T));
  }

  attn_dtype dtype_{};
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;
  GuardedBytes bytes_;
  attn_tensor tensor_{};
};
